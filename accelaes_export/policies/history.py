"""Per-token history: every image token is predicted from its own last computed guided predictions (Eq. 12-13)."""

from __future__ import annotations

import torch

from accelaes_export.errors import InputError
from accelaes_export.policies.base import Extrapolation
from accelaes_export.policies.estimates import Estimates

MEMORY = 0.8
"""How much of what a computed step showed of the foreseeable still counts at the next one."""


class History:
    """The last `order` + 1 computed guided predictions of every token, with the clock values they were computed at.

    Tokens that ran at different steps hold predictions of different steps; nothing here merges them into one picture.
    Every method is a fixed sequence of tensor operations: nothing waits for the device, nothing branches on a value.

    Args:
        order: the highest extrapolation order `at` will be asked for: 0, 1 or 2.
        calibrated: whether computed steps are compared with what was foreseen of them.
    """

    def __init__(self, order: int = 1, *, calibrated: bool = False) -> None:
        if order not in (0, 1, 2):
            raise InputError(f"History's order is {order!r}; allowed are 0, 1 and 2: give one of them.")
        self.order = order
        self.calibrated = calibrated and order > 0
        # Newest first. Lists, so that a dense update rotates the slots instead of copying them.
        self._predictions: list[torch.Tensor] = []  # (order + 1) x [b, N, d] fp32
        self._clocks: list[torch.Tensor] = []  # (order + 1) x [b, N] fp32
        self._count: torch.Tensor | None = None  # [b, N] int8, how many of the slots are filled
        self._drops: torch.Tensor  # [b, N] int32, computed steps since the token ran itself
        self._ran: torch.Tensor  # [b, N] fp32, the clock when it did
        # Sums over the run of <foreseen, came> and |foreseen|^2, [b] fp32: their ratio says what came true.
        self._agreed: torch.Tensor
        self._foreseen: torch.Tensor

    def update(
        self,
        focus_index: torch.Tensor | None,
        prediction: torch.Tensor,
        clock: float,
        ran: torch.Tensor | None = None,
    ) -> None:
        """Take in a computed step.

        Args:
            focus_index: [b, n] int64, the tokens that were computed; None after a DENSE step.
            prediction: their guided prediction, [b, n, d] ([b, N, d] after a DENSE step), any float dtype.
            clock: when: the step index, or sigma. Any scale that moves one way.
            ran: [b, n] int64, the tokens whose queries were computed, where that isn't `focus_index`: in component
                form a SPARSE step predicts all tokens, the background from cached part outputs.

        Raises:
            InputError: if the first step taken in isn't a DENSE one.
        """
        prediction = prediction.to(torch.float32)
        if self._count is None:
            if focus_index is not None:
                raise InputError(
                    "The first computed step is SPARSE; start with a DENSE one, as no token has a prediction."
                )
            self._allocate(prediction)
        assert self._count is not None
        if self.calibrated:
            self._compare(focus_index, prediction, clock)
        if focus_index is None:
            self._predictions.insert(0, self._predictions.pop().copy_(prediction))
            self._clocks.insert(0, self._clocks.pop().fill_(clock))
            self._count.add_(1)
        else:
            rows = focus_index.unsqueeze(-1).expand(-1, -1, prediction.shape[-1])  # [b, n, d]
            for slot in range(self.order, 0, -1):
                self._predictions[slot].scatter_(1, rows, self._predictions[slot - 1].gather(1, rows))
                self._clocks[slot].scatter_(1, focus_index, self._clocks[slot - 1].gather(1, focus_index))
            self._predictions[0].scatter_(1, rows, prediction)
            self._clocks[0].scatter_(1, focus_index, clock)
            self._count.scatter_add_(1, focus_index, torch.ones_like(focus_index, dtype=self._count.dtype))
        self._count.clamp_(max=self.order + 1)
        self._drops.add_(1)
        ran = focus_index if ran is None else ran
        if ran is None:
            self._drops.zero_()
            self._ran.fill_(clock)
        else:
            self._drops.scatter_(1, ran, 0)
            self._ran.scatter_(1, ran, clock)

    def at(self, clock: float, extrapolation: Extrapolation) -> torch.Tensor:
        """Every token's prediction [b, N, d] fp32 at `clock`.

        With k the distance from a token's last computation and `gap` that between its last two, the order-1 form is
        E_last + (k / gap)(E_last - E_prev); order 2 adds the next term of Newton's or Taylor's series. k / gap is held
        at `extrapolation.reach`, of tokens that the latest computed step left out at `stale_reach`. A token with too
        few computed predictions takes the highest order it has enough for. At k = 0 the result is the last prediction,
        bit for bit.

        Raises:
            InputError: before the first update, or for an order above the history's own.
        """
        if self._count is None:
            raise InputError("No step has been computed yet, so nothing can be extrapolated: run a DENSE step first.")
        if extrapolation.order > self.order:
            raise InputError(
                f"Extrapolation of order {extrapolation.order} needs a history of that order; "
                f"this one keeps order {self.order}: make it with History({extrapolation.order})."
            )
        last = self._predictions[0]
        if extrapolation.order == 0:
            return last.clone()
        gap, linear, distance = self._distance(clock)
        if extrapolation.reach is not None:
            distance = distance.clamp(max=extrapolation.reach)
        if extrapolation.stale_reach is not None:
            distance = torch.where(self._drops > 0, distance.clamp(max=extrapolation.stale_reach), distance)
        distance = distance * extrapolation.trend
        if self.calibrated:
            distance = distance * self.came_true.unsqueeze(1)
        change = last - self._predictions[1]  # [b, N, d]
        moved = last + distance.unsqueeze(-1) * change
        if extrapolation.order == 2:
            earlier_gap = self._clocks[1] - self._clocks[2]
            quadratic = linear & (self._count >= 3) & (earlier_gap != 0)
            ratio = torch.where(quadratic, gap / torch.where(quadratic, earlier_gap, 1.0), 0.0)
            if extrapolation.series == "newton":
                weight = distance * (distance + 1) * ratio / (1 + ratio)  # 0 where ratio is 0
            else:
                weight = torch.where(quadratic, distance * distance / 2, 0.0)
            earlier_change = self._predictions[1] - self._predictions[2]
            moved = moved + weight.unsqueeze(-1) * (change - ratio.unsqueeze(-1) * earlier_change)
        return torch.where((distance == 0).unsqueeze(-1), last, moved)

    @property
    def came_true(self) -> torch.Tensor:
        """[b] fp32: how much of the changes foreseen so far came, 0 to 1; 0 while nothing could be foreseen."""
        known = self._foreseen > 0
        return torch.where(known, self._agreed / torch.where(known, self._foreseen, 1.0), 0.0).clamp(0, 1)

    def _distance(self, clock: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[b, N] of the gap between a token's last two computations, whether it has a slope, and k / gap at `clock`."""
        assert self._count is not None, "asked for after the first update"
        gap = self._clocks[0] - self._clocks[1]
        # Two computations at one clock value have no slope: such a token is held.
        linear = (self._count >= 2) & (gap != 0)
        return gap, linear, torch.where(linear, (clock - self._clocks[0]) / torch.where(linear, gap, 1.0), 0.0)

    def _compare(self, focus_index: torch.Tensor | None, prediction: torch.Tensor, clock: float) -> None:
        """Take in how far the linear form foresaw the tokens computed now; older steps count less and less."""
        last = self._predictions[0]
        foreseen = self._distance(clock)[2].unsqueeze(-1) * (last - self._predictions[1])
        if focus_index is not None:
            rows = focus_index.unsqueeze(-1).expand(-1, -1, prediction.shape[-1])
            last, foreseen = last.gather(1, rows), foreseen.gather(1, rows)
        self._agreed.mul_(MEMORY).add_((foreseen * (prediction - last)).sum(dim=(1, 2)))
        self._foreseen.mul_(MEMORY).add_(foreseen.square().sum(dim=(1, 2)))

    def _allocate(self, prediction: torch.Tensor) -> None:
        b, tokens, _ = prediction.shape
        self._predictions = [torch.zeros_like(prediction) for _ in range(self.order + 1)]
        self._clocks = [prediction.new_zeros(b, tokens) for _ in range(self.order + 1)]
        self._count = prediction.new_zeros(b, tokens, dtype=torch.int8)
        self._drops = prediction.new_zeros(b, tokens, dtype=torch.int32)
        self._ran = prediction.new_zeros(b, tokens)
        self._agreed, self._foreseen = prediction.new_zeros(b), prediction.new_zeros(b)

    def estimates(self, rows: slice, clock: float) -> Estimates:
        """What is known of the tokens of some rows at `clock`; after the first update. `last` has P = 1, C = d."""
        last = self._predictions[0][rows]
        drift = None
        if self.order:
            assert self._count is not None
            gap = (self._clocks[0][rows] - self._clocks[1][rows]).abs()
            known = (self._count[rows] >= 2) & (gap > 0)
            change = (last - self._predictions[1][rows]).norm(dim=-1)
            # Nobody knows how fast a token moves that has one prediction: it comes first.
            drift = torch.where(known, change / torch.where(known, gap, 1.0), torch.inf)
        return Estimates(last.unsqueeze(2), drift, (clock - self._ran[rows]).abs(), self._drops[rows])
