"""What a step's tensors say of its sizes, before an engine sees them."""

from __future__ import annotations

import pytest
import torch

from accelaes_export.backends.tensor_table import TensorTable
from accelaes_export.backends.tensorrt.profiles import profiles
from accelaes_export.contract.example_inputs import example_inputs
from accelaes_export.errors import InputError
from tests.tiny_sd3 import tiny_config, tiny_contract

CONTRACT, _ = tiny_contract(tiny_config(num_layers=1))


def outputs_of(n: int, a: int) -> dict[str, torch.Tensor]:
    return {"focus_prediction": torch.empty(2, n, 16), "affinity": torch.empty(2, a)}


def test_the_affinity_is_asked_of_all_focus_tokens_or_of_none() -> None:
    table = TensorTable(CONTRACT, torch.device("cpu"))
    n = CONTRACT.buckets[0]
    assert table.check(example_inputs(CONTRACT, n), outputs_of(n, n)).observed
    assert not table.check(example_inputs(CONTRACT, n, observed=False), outputs_of(n, 0)).observed
    inputs = example_inputs(CONTRACT, n)
    with pytest.raises(InputError, match=f"'observed_index' has 3 tokens; the affinity is made of all {n} or of none"):
        table.check(inputs | {"observed_index": inputs["observed_index"][:, :3].contiguous()}, outputs_of(n, 3))
    with pytest.raises(InputError, match="'affinity' has shape"):
        table.check(example_inputs(CONTRACT, n, observed=False), outputs_of(n, n))


def test_a_tensorrt_profile_takes_both() -> None:
    fixed = CONTRACT.model_copy(update={"dynamic_text": False})
    for made in profiles(fixed):
        assert made.ranges["observed_index"] == ((1, 0), (2, made.n), (2, made.n))
