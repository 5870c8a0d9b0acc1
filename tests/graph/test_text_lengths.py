"""How long a text an engine is called with, so that a GPU meets few different lengths."""

from __future__ import annotations

import pytest

from accelaes_export.backbones.checkpoints import empty_transformer
from accelaes_export.backends import backend
from accelaes_export.graph.tensors import few_text_lengths
from tests.families import FAMILIES


def padded(family, **changes):
    tiny = FAMILIES[family]
    variant = next(iter(tiny.variants))
    return tiny.step(tiny.model(variant), variant).contract.model_copy(update=changes)


def test_masked_texts_are_padded_to_a_multiple_and_others_never():
    lumina = padded("lumina", text_tokens=256, text_multiple=64)
    assert [lumina.window(M) for M in (1, 64, 65, 256, 257)] == [64, 64, 128, 256, 320]
    assert [padded("lumina", text_multiple=1).window(M) for M in (1, 37)] == [1, 37]
    fixed = padded("lumina", text_tokens=256, text_multiple=64, dynamic_text=False)
    assert [fixed.window(M) for M in (1, 200, 256, 300)] == [256, 256, 256, 300], "an engine of one length has one"
    for family in ("sd3", "flux", "wan"):  # their models attend to padding: another length is another picture
        assert padded(family, text_multiple=64).window(37) == 37


@pytest.mark.parametrize(("family", "expected"), [("lumina", 256), ("pixart", 256), ("qwen-image", 64), ("dit", 1)])
def test_texts_that_go_through_the_blocks_are_padded_less(family, expected):
    tiny = FAMILIES[family]
    model = empty_transformer(tiny.backbone, tiny.full_config(next(iter(tiny.variants))))
    assert few_text_lengths(tiny.backbone, model, 0 if family == "dit" else 256) == expected
    assert few_text_lengths(tiny.backbone, model, 8 if tiny.text_tokens else 0) == (8 if tiny.text_tokens else 1)


def test_only_gpus_mind_how_many_lengths_there_are():
    assert not backend("onnxruntime").for_gpu(("cpu",))
    assert not backend("aoti").for_gpu(("cpu",))
    assert backend("onnxruntime").for_gpu(("cuda",))
    assert backend("tensorrt-rtx").for_gpu(("sm120",))
