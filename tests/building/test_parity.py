"""What verification calls equal: maxima and norms, and never what is no number."""

from __future__ import annotations

import math

import pytest
import torch

from accelaes_export.backbones import backbone_of
from accelaes_export.building.verification import NORM_TOLERANCES, TOLERANCES, _parity, in_fp32
from accelaes_export.contract.example_inputs import example_inputs
from tests.families import FAMILIES


def compared(found: torch.Tensor, wanted: torch.Tensor, dtype: str = "fp32"):
    return _parity({"focus_prediction": found}, {"focus_prediction": wanted}, 4, "diffusers", dtype)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["found", "wanted", "both"])
def test_what_is_no_number_fails_on_either_side_and_on_both(value: float, side: str) -> None:
    found, wanted = torch.zeros(2, 3), torch.ones(2, 3)
    if side != "wanted":
        found[0, 0] = value
    if side != "found":
        wanted[0, 0] = value
    result = compared(found, wanted)
    assert not result.passed
    assert result.max_rel == math.inf


def test_an_output_of_zeros_is_no_other_output() -> None:
    assert not compared(torch.zeros(8), torch.randn(8)).passed
    assert compared(torch.zeros(8), torch.zeros(8)).passed


def test_single_roundings_pass_where_a_shift_of_all_values_does_not() -> None:
    wanted = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    one_off, all_off = wanted.clone(), wanted + 0.09 * wanted.abs().max() * torch.sign(wanted)
    one_off[7] += 0.09 * float(wanted.abs().max())
    single, every = compared(one_off, wanted, "bf16"), compared(all_off, wanted, "bf16")
    assert single.max_rel == pytest.approx(0.09, rel=0.01) and single.passed
    assert every.max_rel == pytest.approx(0.09, rel=0.01) and not every.passed
    assert every.norm_rel > NORM_TOLERANCES["bf16"] and every.max_rel < TOLERANCES["bf16"]
    assert "of its norm, where 0.08 is" in every.errors


@pytest.mark.parametrize("family", ["flux", "lumina", "sd3"])
def test_a_reference_with_no_room_in_fp32_computes_the_same_matrix_by_matrix(family, monkeypatch) -> None:
    tiny = FAMILIES[family]
    variant = next(iter(tiny.variants))

    def computed() -> torch.Tensor:
        model = in_fp32(tiny.model(variant).bfloat16(), backbone_of(family), torch.device("cpu"))
        step = tiny.step(model, variant)
        inputs = example_inputs(step.contract, step.contract.buckets[0])
        with torch.no_grad():
            found = step.run(inputs)["focus_prediction"]
        kinds.append({weight.dtype for weight in model.parameters()})
        return found

    kinds: list[set[torch.dtype]] = []
    whole = computed()
    monkeypatch.setattr("accelaes_export.building.verification._has_room", lambda model, device: False)
    assert torch.equal(computed(), whole)
    assert kinds == [{torch.float32}, {torch.float32, torch.bfloat16}]
