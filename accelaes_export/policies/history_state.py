"""What is known of every token's computed predictions (Eq. 12-13): tensors of fixed shape, and pure functions of them.

No function here waits for the device, branches on a value or changes what it is given. A quotient by zero is made as
well, and then not taken. A clock value is a number, or a tensor of one: they are traced with the second.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch

from accelaes_export.policies.base import Extrapolation
from accelaes_export.policies.coefficients import DEPTH, Coefficients
from accelaes_export.policies.estimates import Estimates

MEMORY = 0.8
"""How much of what a computed step showed of the foreseeable still counts at the next one."""

Clock = float | torch.Tensor


class HistoryState(NamedTuple):
    """The last `order` + 1 computed predictions of every token of b images, with the clock values they are of.

    Tokens that ran at different steps hold predictions of different steps; nothing here merges them into one picture.
    All zeros before the first step.

    Attributes:
        predictions: newest first, (order + 1) x [b, N, d] fp32.
        clocks: (order + 1) x [b, N] fp32.
        known: [b, N] fp32, how many of them there are.
        drops: [b, N] fp32, computed steps since the token ran itself.
        ran: [b, N] fp32, the clock when it did.
        agreed, foreseen: [b] fp32, sums over the run of <foreseen, came> and |foreseen|^2: their ratio says what came
            true.
    """

    predictions: tuple[torch.Tensor, ...]
    clocks: tuple[torch.Tensor, ...]
    known: torch.Tensor
    drops: torch.Tensor
    ran: torch.Tensor
    agreed: torch.Tensor
    foreseen: torch.Tensor

    @property
    def order(self) -> int:
        """The highest that it can be extrapolated by."""
        return len(self.predictions) - 1


def taken_in(
    state: HistoryState,
    prediction: torch.Tensor,
    clock: Clock,
    computed: torch.Tensor | None = None,
    ran: torch.Tensor | None = None,
    *,
    calibrated: bool = False,
) -> HistoryState:
    """The state after a computed step.

    Args:
        prediction: [b, N, d] fp32, which the new state keeps; of tokens that weren't computed their last.
        clock: when: the step index, or sigma. Any scale that moves one way.
        computed: [b, N] bool, the tokens that were; None: all.
        ran: [b, N] bool, those whose queries were computed, where that isn't `computed`: in component form a sparse
            step predicts all tokens, the background from cached part outputs. None: as `computed`.
        calibrated: whether it is compared with what was foreseen of it.
    """
    last = state.predictions[0]
    agreed, foreseen = state.agreed, state.foreseen
    if calibrated and state.order:
        # The linear form foresaw `distance` changes; a token that wasn't computed foresaw nothing of this step.
        distance, change = _distance(state, clock)[2], last - state.predictions[1]
        if computed is not None:
            distance = torch.where(computed, distance, 0.0)
        agreed = agreed * MEMORY + (distance * (change * (prediction - last)).sum(dim=2)).sum(dim=1)
        foreseen = foreseen * MEMORY + (distance.square() * change.square().sum(dim=2)).sum(dim=1)
    every = prediction.shape[:2]
    everywhere = clock.expand(every) if isinstance(clock, torch.Tensor) else prediction.new_full(every, clock)
    ran = computed if ran is None else ran
    return HistoryState(
        predictions=(prediction, *_moved_back(state.predictions, computed)),
        clocks=(
            everywhere if computed is None else torch.where(computed, clock, state.clocks[0]),
            *_moved_back(state.clocks, computed),
        ),
        known=(state.known + (1 if computed is None else computed)).clamp(max=state.order + 1),
        drops=prediction.new_zeros(every) if ran is None else torch.where(ran, 0.0, state.drops + 1),
        ran=everywhere if ran is None else torch.where(ran, clock, state.ran),
        agreed=agreed,
        foreseen=foreseen,
    )


def _moved_back(slots: tuple[torch.Tensor, ...], computed: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """All but the newest slot, [b, N, ...]: what stood in the one before it, of the tokens that were computed."""
    if computed is None:
        return slots[:-1]
    where = computed.unsqueeze(-1) if slots[0].ndim > computed.ndim else computed
    return tuple(torch.where(where, newer, own) for newer, own in pairwise(slots))


def predicted(state: HistoryState, clock: Clock, extrapolation: Extrapolation) -> torch.Tensor:
    """Every token's prediction [b, N, d] fp32 at `clock`, by an order of at most the state's own.

    With k the distance from a token's last computation and `gap` that between its last two, the order-1 form is
    E_last + (k / gap)(E_last - E_prev); order 2 adds the next term of Newton's or Taylor's series. k / gap is held at
    `extrapolation.reach`, of tokens that the latest computed step left out at `stale_reach`. A token with too few
    computed predictions takes the highest order it has enough for. At k = 0 the result is the last prediction.
    """
    last = state.predictions[0]
    if extrapolation.order == 0:
        return last.clone()
    gap, linear, distance = _distance(state, clock)
    if extrapolation.reach is not None:
        distance = distance.clamp(max=extrapolation.reach)
    if extrapolation.stale_reach is not None:
        distance = torch.where(state.drops > 0, distance.clamp(max=extrapolation.stale_reach), distance)
    distance = distance * extrapolation.trend
    if extrapolation.calibrated:
        distance = distance * came_true(state).unsqueeze(1)
    change = last - state.predictions[1]  # [b, N, d]
    moved = last + distance.unsqueeze(-1) * change
    if extrapolation.order == 2:
        earlier_gap = state.clocks[1] - state.clocks[2]
        quadratic = linear & (state.known >= 3) & earlier_gap.bool()
        ratio = torch.where(quadratic, gap / earlier_gap, 0.0)
        if extrapolation.series == "newton":
            weight = distance * (distance + 1) * ratio / (1 + ratio)  # 0 where ratio is 0
        else:
            weight = torch.where(quadratic, distance * distance / 2, 0.0)
        earlier_change = state.predictions[1] - state.predictions[2]
        moved = moved + weight.unsqueeze(-1) * (change - ratio.unsqueeze(-1) * earlier_change)
    return moved


def weighed(
    state: HistoryState, i: Clock, conditional: torch.Tensor, coefficients: Coefficients, table: torch.Tensor
) -> torch.Tensor:
    """Every token's prediction [b, N, d] fp32 at step i, by learned weights of its last three.

    Args:
        conditional: [b] fp32, 1 for rows of the conditional half.
        table: the coefficients', on the state's device.
    """
    c0, c1, c2 = state.clocks
    age = (i - c0).clamp(0, coefficients.ages - 1)
    gap = torch.where(state.known >= 2, c0 - c1, 0.0).clamp(0, coefficients.gaps - 1)
    earlier = torch.where(state.known >= 3, c1 - c2, 0.0).clamp(0, coefficients.gaps - 1)
    place = (i * 2 + conditional).unsqueeze(1) * coefficients.ages + age
    place = (place * coefficients.gaps + gap) * coefficients.gaps + earlier  # exact: far below 2^24
    newest, before, first = table.reshape(-1, DEPTH, 1)[place.long()].unbind(dim=2)  # [b, N, 1]
    return newest * state.predictions[0] + before * state.predictions[1] + first * state.predictions[2]


def came_true(state: HistoryState) -> torch.Tensor:
    """[b] fp32: how much of the changes foreseen so far came, 0 to 1; 0 while nothing could be foreseen."""
    known = state.foreseen > 0
    return torch.where(known, state.agreed / state.foreseen, 0.0).clamp(0, 1)


def estimated(state: HistoryState, clock: Clock, rows: slice = slice(None)) -> Estimates:
    """What is known of the tokens of some rows at `clock`. `last` has P = 1, C = d; `drift` needs order 1."""
    last = state.predictions[0][rows]
    drift = None
    if state.order:
        gap = (state.clocks[0][rows] - state.clocks[1][rows]).abs()
        moves = (state.known[rows] >= 2) & (gap > 0)
        change = (last - state.predictions[1][rows]).norm(dim=-1)
        # Nobody knows how fast a token moves that has one prediction: it comes first.
        drift = torch.where(moves, change / gap, torch.inf)
    return Estimates(last.unsqueeze(2), drift, (clock - state.ran[rows]).abs(), state.drops[rows])


def _distance(state: HistoryState, clock: Clock) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[b, N] of the gap between a token's last two computations, whether it has a slope, and k / gap at `clock`."""
    gap = state.clocks[0] - state.clocks[1]
    # Two computations at one clock value have no slope: such a token is held.
    linear = (state.known >= 2) & gap.bool()
    return gap, linear, torch.where(linear, (clock - state.clocks[0]) / gap, 0.0)
