"""EasyCache: a step is computed once the output, by what it changed lately, would have changed enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accelaes_export.checks import is_finite
from accelaes_export.errors import InputError
from accelaes_export.policies.base import BasePolicy, Extrapolation
from accelaes_export.policies.plan import Plan
from accelaes_export.policies.schedule import require_steps, require_whole

if TYPE_CHECKING:
    import torch

    from accelaes_export.policies.base import Gate


@dataclass(frozen=True)
class EasyCache(BasePolicy):
    """A step is computed once the change foreseen of the output, from the input's own, adds up to `threshold`.

    Between two computed steps the output changes k times as much as the input, and k changes slowly: at a step that
    might be skipped, k |x_i - x_{i-1}| over the size of the last output is what skipping it costs (L1 means). The sum
    is kept below the threshold. The paper carries on the difference of output and input; here the output itself is
    held, as with `teacache`. All images of a batch share the decision, and the host asks the device at every step.

    Attributes:
        threshold: above 0, of the output's own size; the larger, the fewer steps are computed.
        warmup: steps computed before the first may be skipped, at least 2; the last one always is.
    """

    threshold: float = 0.05
    warmup: int = 4

    name: ClassVar[str] = "easycache"

    def __post_init__(self) -> None:
        if not is_finite(self.threshold) or self.threshold <= 0:
            raise InputError(f"threshold is {self.threshold!r}; give a number above 0.")
        require_whole("warmup", self.warmup, at_least=2)

    @property
    def extrapolation(self) -> Extrapolation:
        return Extrapolation(order=0)

    def plan(self, steps: int, buckets: Sequence[float] = (), shares: Sequence[float] = ()) -> Plan:
        """``D`` for each step: what is computed at most. A run's report has the plan as carried out."""
        require_steps(steps)
        return Plan("D" * steps, tuple(buckets))

    def gate(self) -> Gate | None:
        return _ForeseenChange(self.threshold, self.warmup)


class _ForeseenChange:
    """EasyCache's decision; see `Gate`."""

    def __init__(self, threshold: float, warmup: int) -> None:
        self._threshold = threshold
        self._warmup = warmup
        self._latents: torch.Tensor | None = None  # of the last step that was decided on
        self._computed: tuple[torch.Tensor, torch.Tensor] | None = None  # latents and prediction of the last one
        self._rate: float | None = None  # k over the size of the last prediction
        self._sum = 0.0
        self._decided: tuple[int, bool] | None = None

    def computes(self, i: int, hidden_states: torch.Tensor, *, last: bool) -> bool:
        if self._decided is None or self._decided[0] != i:
            self._decided = i, self._decide(i, hidden_states) or last
            if self._decided[1]:
                self._sum = 0.0
        return self._decided[1]

    def _decide(self, i: int, hidden_states: torch.Tensor) -> bool:
        before, self._latents = self._latents, hidden_states.detach().float().clone()
        if i < self._warmup or self._rate is None or before is None or before.shape != self._latents.shape:
            return True
        self._sum += self._rate * float((self._latents - before).abs().mean())  # waits for the device
        return not self._sum < self._threshold  # a change that is no number computes

    def observe(self, i: int, prediction: torch.Tensor) -> None:
        assert self._latents is not None, "a step is decided on before it is computed"
        latents, now = self._latents, prediction.detach().float().clone()
        before, self._computed = self._computed, (latents, now)
        if before is None or before[0].shape != latents.shape or before[1].shape != now.shape:
            self._rate = None
            return
        moved = (latents - before[0]).abs().mean()
        self._rate = float((now - before[1]).abs().mean() / moved / now.abs().mean())
