"""Made-up inputs that a trained model can't answer say nothing of an engine; and a wrong engine fails on any."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import accelaes_export as ax
from accelaes_export import recipes
from accelaes_export.backbones import backbone_of
from accelaes_export.building.differences import difference
from accelaes_export.building.fair_inputs import accounts, nudged, of_loudness
from accelaes_export.building.verification import compare, source_model, verify
from accelaes_export.contract.example_inputs import example_inputs
from accelaes_export.contract.patches import patchify
from benchmarks.families import CHECKPOINTS, recipe
from tests.families import FAMILIES

TINY = FAMILIES["pixart"]
VARIANT = next(iter(TINY.variants))
LOUD, HEEDED = 1000.0, 30.0
"""Times a random model's queries of text, and what it takes from it: its attention turns over at the least change."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ax.Bundle:
    """Of a model to which standard-normal text is far too loud."""
    folder = tmp_path_factory.mktemp("loud")
    model = TINY.model(VARIANT)
    with torch.no_grad():
        for block in model.transformer_blocks:
            block.attn2.to_q.weight *= LOUD
            block.attn2.to_out[0].weight *= HEEDED
    model.save_pretrained(folder / "checkpoint")
    recipe = recipes.load("pixart-sigma").override(
        checkpoint=str(folder / "checkpoint"),
        text=[{"tokenizers": ["tokenizer"], "length": TINY.text_tokens}],
        resolution=TINY.resolutions[0],
        dtype="fp32",
        affinity_every=1,
        plans={},
    )
    return ax.build(model=recipe, output=folder / "bundle")


def test_a_trained_model_that_loud_text_confuses_is_built(tmp_path: Path) -> None:
    parity = ax.build(
        model=recipe("pixart", CHECKPOINTS / "pixart"), output=tmp_path / "bundle"
    ).manifest.geometry.parity
    assert all(result.passed and result.max_rel < 1e-4 for result in parity)


def answered(model: torch.nn.Module, bundle: ax.Bundle, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    geometry = bundle.manifest.geometry
    dtype = next(model.parameters()).dtype
    call = {
        name: inputs[name].to(dtype) if inputs[name].is_floating_point() else inputs[name]
        for name in ("hidden_states", "timestep", *geometry.contract.conditioning)
    }
    with torch.no_grad():
        sample = backbone_of("pixart").reference(model, call, geometry.latents)
    return {"focus_prediction": patchify(sample, geometry.latents).double()}


def test_a_model_that_is_as_far_from_itself_is_asked_with_quieter_text_and_its_engine_passes(bundle: ax.Bundle) -> None:
    contract, model = bundle.manifest.geometry.contract, source_model(bundle.manifest)
    loud = example_inputs(contract, contract.tokens, seed=contract.tokens)
    apart = {
        loudness: difference(
            answered(model.float(), bundle, of_loudness(loud, contract, loudness)),
            answered(model.double(), bundle, of_loudness(loud, contract, loudness)),
        ).max_rel
        for loudness in (1.0, 1 / 64)
    }
    assert apart[1.0] > 1e-4 > 100 * apart[1 / 64], "the model in fp32 is no better than what is allowed of an engine"
    assert all(result.passed and result.max_rel < 1e-4 for result in bundle.manifest.geometry.parity)
    assert verify(bundle).passed


@pytest.mark.parametrize("part", ["attn1.to_v", "attn2.to_out.0", "ff.net.2"])
def test_an_engine_of_other_weights_fails_however_loud_the_text_is(bundle: ax.Bundle, part: str) -> None:
    model = source_model(bundle.manifest)
    with torch.no_grad():
        model.transformer_blocks[0].get_submodule(part).weight *= 1.05
    results = compare(bundle.session(), bundle.manifest, bundle.manifest.geometry, model)
    assert not any(result.passed for result in results)


def test_only_text_grows_quiet_and_a_nudge_is_one_rounding_of_latents_and_text(bundle: ax.Bundle) -> None:
    contract = bundle.manifest.geometry.contract
    inputs = example_inputs(contract, contract.buckets[0])
    quiet, moved = of_loudness(inputs, contract, 0.25), nudged(inputs, contract)
    assert quiet["encoder_hidden_states"].std().item() == pytest.approx(0.25, rel=0.1)
    assert [name for name in inputs if not torch.equal(quiet[name], inputs[name])] == ["encoder_hidden_states"]
    assert {name for name in inputs if not torch.equal(moved[name], inputs[name])} == {
        "encoder_hidden_states",
        "hidden_states",
    }
    far = (moved["hidden_states"] / inputs["hidden_states"] - 1).abs()
    assert 0 < far.max() <= 2 * torch.finfo(torch.float32).eps


def test_what_is_no_number_is_accounted_for_by_nothing() -> None:
    assert accounts(1e-5, 1e-4) and not accounts(1e-6, 1e-4)
    assert not accounts(math.inf, math.inf) and not accounts(1.0, math.nan)
