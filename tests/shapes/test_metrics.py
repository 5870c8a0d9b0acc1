"""The shapes world's metrics: drawings of a scene are right, drawings of another aren't, a mask's hits are counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from accelaes_export.measure.quality.metrics import Sample
from examples.shapes.captions import heldout_prompts, parse
from examples.shapes.drawing import aesthetic_mask, draw, token_mask
from examples.shapes.metrics import ACCURACY, HIT_RATE, SHAPE_AND_COLOUR

PROMPTS = heldout_prompts(24)


def drawn(prompt: str) -> Image.Image:
    picture = draw([parse(prompt)], torch.Generator().manual_seed(0))[0][0]
    return Image.fromarray(((picture.permute(1, 2, 0).numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8))


def sample(prompt: str, frame: Image.Image, affinity: Any = None) -> Sample:
    report = SimpleNamespace(affinity=affinity)
    return Sample(prompt, 1, [frame], None, report=report, manifest=None)  # type: ignore[arg-type]


def test_a_drawing_of_the_prompts_scene_is_right() -> None:
    shares = [ACCURACY.measure(sample(prompt, drawn(prompt))) for prompt in PROMPTS]
    assert np.mean([share for share in shares if share is not None]) > 0.9
    assert np.mean([SHAPE_AND_COLOUR.measure(sample(prompt, drawn(prompt))) for prompt in PROMPTS]) > 0.95


def test_a_drawing_of_another_scene_is_not() -> None:
    others = [*PROMPTS[1:], PROMPTS[0]]
    shares = [ACCURACY.measure(sample(prompt, drawn(other))) for prompt, other in zip(PROMPTS, others, strict=True)]
    assert np.mean(shares) < 0.2


def test_hits_are_the_described_objects_tokens_in_the_better_half() -> None:
    asked = next(prompt for prompt in PROMPTS if parse(prompt).aesthetic_item is not None)
    inside = token_mask(aesthetic_mask(parse(asked))).flatten()
    half = len(inside) // 2
    frame = drawn(asked)
    assert HIT_RATE.measure(sample(asked, frame, inside.float()[None])) == 1
    assert HIT_RATE.measure(sample(asked, frame, -inside.float()[None])) == 0
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        affinity = torch.rand(1, len(inside), generator=generator)
        best = set(affinity[0].argsort(descending=True)[:half].tolist())
        hits = sum(token in best for token in inside.nonzero().flatten().tolist())
        assert HIT_RATE.measure(sample(asked, frame, affinity)) == pytest.approx(hits / inside.sum().item())


def test_nothing_is_said_where_nothing_can_be_known() -> None:
    assert ACCURACY.measure(sample("a photograph of the sea", drawn(PROMPTS[0]))) is None
    plain = next(prompt for prompt in PROMPTS if parse(prompt).aesthetic_item is None)
    assert HIT_RATE.measure(sample(plain, drawn(plain), torch.rand(1, 144))) is None
    assert HIT_RATE.measure(sample(PROMPTS[0], drawn(PROMPTS[0]))) is None
