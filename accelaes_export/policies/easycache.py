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
        from accelaes_export.policies.gating import ForeseenChange  # loads torch, which a plan alone doesn't need

        return ForeseenChange(self.threshold, self.warmup)
