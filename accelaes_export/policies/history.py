"""The history of a run: every image token is predicted from its own last computed guided predictions (Eq. 12-13)."""

from __future__ import annotations

import torch

from accelaes_export.errors import InputError
from accelaes_export.policies import history_state
from accelaes_export.policies.base import Extrapolation
from accelaes_export.policies.estimates import Estimates
from accelaes_export.policies.history_state import HistoryState, nothing_known, taken_in


class History:
    """Holds a `HistoryState` from step to step, and takes in what an engine computed.

    Args:
        order: the highest extrapolation order `at` will be asked for: 0, 1 or 2.
        calibrated: whether computed steps are compared with what was foreseen of them.
    """

    def __init__(self, order: int = 1, *, calibrated: bool = False) -> None:
        if order not in (0, 1, 2):
            raise InputError(f"History's order is {order!r}; allowed are 0, 1 and 2: give one of them.")
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
        """Take in a computed step.

        Args:
            focus_index: [b, n] int64, the tokens that were computed; None after a DENSE step.
            prediction: their guided prediction, [b, n, d] ([b, N, d] after a DENSE step), any float dtype; copied.
            clock: see `history_state.taken_in`.
            ran: [b, n] int64, the tokens whose queries were computed, where that isn't `focus_index`.

        Raises:
            InputError: if the first step taken in isn't a DENSE one.
        """
        if self._state is None and focus_index is not None:
            raise InputError("The first computed step is SPARSE; start with a DENSE one, as no token has a prediction.")
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
        """Every token's prediction [b, N, d] fp32 at `clock`; see `history_state.predicted`.

        Raises:
            InputError: before the first update, or for an order above the history's own.
        """
        if self._state is None:
            raise InputError("No step has been computed yet, so nothing can be extrapolated: run a DENSE step first.")
        if extrapolation.order > self.order:
            raise InputError(
                f"Extrapolation of order {extrapolation.order} needs a history of that order; "
                f"this one keeps order {self.order}: make it with History({extrapolation.order})."
            )
        return history_state.predicted(self._state, clock, extrapolation)

    def estimates(self, rows: slice, clock: float) -> Estimates:
        """What is known of the tokens of some rows at `clock`; after the first update."""
        return history_state.estimated(self._known(), clock, rows)

    def _known(self) -> HistoryState:
        assert self._state is not None, "asked for after the first update"
        return self._state

    def _mask_of(self, index: torch.Tensor) -> torch.Tensor:
        """[b, N] bool of an index [b, n]. Made anew each time: the index may be a buffer that is written over."""
        return torch.zeros_like(self._known().ran, dtype=torch.bool).scatter_(1, index, True)
