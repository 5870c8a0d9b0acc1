"""TeaCache: a step is computed once the input has changed enough since the last computed one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accelaes_export.checks import is_finite
from accelaes_export.errors import InputError
from accelaes_export.policies.base import BasePolicy, Extrapolation
from accelaes_export.policies.plan import Plan
from accelaes_export.policies.schedule import require_steps

if TYPE_CHECKING:
    from accelaes_export.policies.base import Gate


@dataclass(frozen=True)
class TeaCache(BasePolicy):
    """The relative L1 change of the input from step to step adds up; where it reaches `threshold`, a step is computed.

    The paper measures the first block's input after its timestep modulation, which an engine doesn't hand out. Here it
    is the engine's own input: the latents. `coefficients` are the paper's polynomial from the measured change to the
    output's, which it fits to each model.

    The host asks the device at every step, so this is the one policy whose loop waits. All images of a batch share the
    decision, as the paper's do.

    Attributes:
        threshold: above 0; the larger, the fewer steps are computed. The first and the last one always are.
        coefficients: of the polynomial, highest power first; the default takes the change as it is.
    """

    threshold: float = 0.15
    coefficients: tuple[float, ...] = (1.0, 0.0)

    name: ClassVar[str] = "teacache"

    def __post_init__(self) -> None:
        if not is_finite(self.threshold) or self.threshold <= 0:
            raise InputError(f"threshold is {self.threshold!r}; give a number above 0.")
        coefficients = self.coefficients
        if (
            not isinstance(coefficients, (tuple, list))
            or not coefficients
            or not all(is_finite(c) for c in coefficients)
        ):
            raise InputError(f"coefficients are {coefficients!r}; give a list of numbers, the highest power's first.")
        object.__setattr__(self, "coefficients", tuple(coefficients))  # a manifest stores a list

    @property
    def extrapolation(self) -> Extrapolation:
        return Extrapolation(order=0)

    def plan(self, steps: int, buckets: Sequence[float] = (), shares: Sequence[float] = ()) -> Plan:
        """``D`` for each step: what is computed at most. A run's report has the plan as carried out."""
        require_steps(steps)
        return Plan("D" * steps, tuple(buckets))

    def gate(self) -> Gate | None:
        from accelaes_export.policies.gating import AccumulatedChange  # loads torch, which a plan alone doesn't need

        return AccumulatedChange(self.threshold, self.coefficients)
