"""What is known of tokens, as pure functions: they trace, with the clock as a tensor, and read what was computed."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves

from accelaes_export.policies.base import Extrapolation
from accelaes_export.policies.history_state import HistoryState, estimated, predicted, taken_in
from tests.policies.held_history import nothing_known

b, N, d = 2, 7, 3
EXTRAPOLATIONS = [
    Extrapolation(order=0),
    Extrapolation(reach=1.0, stale_reach=0.5, trend=0.8),
    Extrapolation(calibrated=True),
    Extrapolation(order=2),
    Extrapolation(order=2, series="taylor", calibrated=True, reach=2.0),
]


def steps(seed: int = 0) -> list[tuple[torch.Tensor, float, torch.Tensor]]:
    """Predictions, clocks and what was computed: all of it, then some."""
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.ones(b, N, dtype=torch.bool), *(torch.rand(4, b, N, generator=generator) < 0.5)]
    return [(torch.randn(b, N, d, generator=generator), 10.0 - 1.5 * k, mask) for k, mask in enumerate(masks)]


def latest(state: HistoryState, prediction: torch.Tensor, computed: torch.Tensor) -> torch.Tensor:
    return torch.where(computed.unsqueeze(-1), prediction, state.predictions[0])


def state_of(taken: list[tuple[torch.Tensor, float, torch.Tensor]], extrapolation: Extrapolation) -> HistoryState:
    state = nothing_known(taken[0][0], extrapolation.order)
    for prediction, clock, computed in taken:
        whole = latest(state, prediction, computed)
        state = taken_in(state, whole, clock, computed, calibrated=extrapolation.calibrated)
    return state


class Program(torch.nn.Module):
    """A step and what follows from it, as a graph of fixed shapes."""

    def __init__(self, extrapolation: Extrapolation) -> None:
        super().__init__()
        self.extrapolation = extrapolation

    def forward(self, state, prediction, clock, computed, target):
        state = HistoryState(*state)
        whole = latest(state, prediction, computed)
        state = taken_in(state, whole, clock, computed, calibrated=self.extrapolation.calibrated)
        estimates = estimated(state, target)
        moved = estimates.last if estimates.drift is None else estimates.drift
        return tuple(state), predicted(state, target, self.extrapolation), moved, estimates.age, estimates.drops


@pytest.mark.parametrize("extrapolation", EXTRAPOLATIONS, ids=str)
def test_a_traced_step_gives_what_an_eager_one_gives_bit_for_bit(extrapolation: Extrapolation) -> None:
    taken = steps()
    state, (prediction, clock, computed) = state_of(taken[:-1], extrapolation), taken[-1]
    inputs = (tuple(state), prediction, torch.tensor(clock), computed, torch.tensor(3.7))
    traced = torch.export.export(Program(extrapolation), inputs, strict=False).module()(*inputs)
    eager = Program(extrapolation)(tuple(state), prediction, clock, computed, 3.7)
    for found, wanted in zip(tree_leaves(traced), tree_leaves(eager), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("extrapolation", EXTRAPOLATIONS, ids=str)
def test_a_mask_of_ones_is_a_dense_step(extrapolation: Extrapolation) -> None:
    state, (prediction, clock, _) = state_of(steps(), extrapolation), steps(1)[0]
    everything = torch.ones(b, N, dtype=torch.bool)
    masked, dense = (
        taken_in(state, prediction, clock - 20, mask, calibrated=extrapolation.calibrated)
        for mask in (everything, None)
    )
    leaves = (tree_leaves(one) for one in (masked, dense))
    assert all(torch.equal(a, c) for a, c in zip(*leaves, strict=True))


def test_a_step_changes_nothing_it_is_given() -> None:
    extrapolation = Extrapolation(order=2, calibrated=True)
    state = state_of(steps()[:3], extrapolation)
    before = [leaf.clone() for leaf in tree_leaves(state)]
    prediction, clock, computed = steps()[3]
    whole = latest(state, prediction, computed)
    predicted(taken_in(state, whole, clock, computed, calibrated=True), 0.0, extrapolation)
    assert all(torch.equal(a, c) for a, c in zip(tree_leaves(state), before, strict=True))
