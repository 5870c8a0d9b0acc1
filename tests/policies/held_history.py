"""A `HistoryState` held from step to step and asked by token index, to be compared with loops over tokens."""

from __future__ import annotations

import torch

from accelaes_export.policies import history_state
from accelaes_export.policies.base import Extrapolation
from accelaes_export.policies.estimates import Estimates
from accelaes_export.policies.history_state import HistoryState, taken_in


def nothing_known(like: torch.Tensor, order: int) -> HistoryState:
    """The state before the first step, of predictions like [b, N, d] fp32."""
    b, tokens, _ = like.shape
    none = like.new_zeros(b, tokens)
    return HistoryState(
        predictions=(torch.zeros_like(like),) * (order + 1),
        clocks=(none,) * (order + 1),
        known=none,
        drops=none,
        ran=none,
        agreed=like.new_zeros(b),
        foreseen=like.new_zeros(b),
    )


class History:
    """What is known after the steps taken in so far; the first of them computes all tokens."""

    def __init__(self, order: int = 1, *, calibrated: bool = False) -> None:
        self.order = order
        self.calibrated = calibrated and order > 0
        self._state: HistoryState | None = None

    @property
    def came_true(self) -> torch.Tensor:
        """[b] fp32: see `history_state.came_true`."""
        return history_state.came_true(self._known())

    def update(
        self,
        focus_index: torch.Tensor | None,
        prediction: torch.Tensor,
        clock: float,
        ran: torch.Tensor | None = None,
    ) -> None:
        """Take in predictions [b, n, d] of tokens `focus_index` [b, n] (None: all); `ran` [b, n]: those that ran."""
        if focus_index is None:
            whole = prediction.to(torch.float32, copy=True)
            self._state = nothing_known(whole, self.order) if self._state is None else self._state
        else:
            rows = focus_index.unsqueeze(-1).expand_as(prediction)
            whole = self._known().predictions[0].scatter(1, rows, prediction.to(torch.float32))
        self._state = taken_in(
            self._known(),
            whole,
            clock,
            None if focus_index is None else self._mask_of(focus_index),
            None if ran is None else self._mask_of(ran),
            calibrated=self.calibrated,
        )

    def at(self, clock: float, extrapolation: Extrapolation) -> torch.Tensor:
        """Every token's prediction [b, N, d] fp32 at `clock`; see `history_state.predicted`."""
        return history_state.predicted(self._known(), clock, extrapolation)

    def estimates(self, rows: slice, clock: float) -> Estimates:
        """What is known of the tokens of some rows at `clock`; after the first update."""
        return history_state.estimated(self._known(), clock, rows)

    def _known(self) -> HistoryState:
        assert self._state is not None, "asked for after the first update"
        return self._state

    def _mask_of(self, index: torch.Tensor) -> torch.Tensor:
        """[b, N] bool of an index [b, n]. Made anew each time: the index may be a buffer that is written over."""
        return torch.zeros_like(self._known().ran, dtype=torch.bool).scatter_(1, index, True)
