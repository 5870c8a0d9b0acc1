"""StepCache (Eq. 12-13): some steps compute all tokens, the others extrapolate the guided prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from accelaes_export.policies.base import BasePolicy, Extrapolation
from accelaes_export.policies.plan import Plan
from accelaes_export.policies.schedule import computed_steps, predictions_needed, require_steps, require_whole


@dataclass(frozen=True)
class StepCache(BasePolicy):
    """AccelAes without its mask: all tokens are computed together or extrapolated together.

    Attributes:
        warmup: T_w, dense steps before the first skip. Orders 1 and 2 compute at least two, whatever it says.
        interval: Δ, one computed step in `interval` after the warm-up; 1 never skips.
        order: 0 holds the last prediction, 1 is linear (the paper's), 2 quadratic.
        clock: "step" or "sigma", what the extrapolation distance is counted in.
        theta: θ, how far past each step the prediction fed to the scheduler is extrapolated, in steps.
        calibrated: whether no more of a change is carried on than has come true so far in the run.

    Raises:
        InputError: for an option outside its range.
    """

    warmup: int = 5
    interval: int = 2
    order: int = 1
    clock: Literal["step", "sigma"] = "step"
    theta: float = 0.0
    calibrated: bool = False

    name: ClassVar[str] = "stepcache"

    def __post_init__(self) -> None:
        require_whole("warmup", self.warmup, at_least=1)
        require_whole("interval", self.interval, at_least=1)
        _ = self.extrapolation  # checks order and clock

    @property
    def extrapolation(self) -> Extrapolation:
        """As in Eq. 13: without a limit, since every token was computed less than one interval ago."""
        return Extrapolation(order=self.order, clock=self.clock, theta=self.theta, calibrated=self.calibrated)

    def plan(self, steps: int, buckets: Sequence[float] = (), shares: Sequence[float] = ()) -> Plan:
        """T = 28 by default: ``DDDDD.D.D.D.D.D.D.D.D.D.D.DD``, cost 17. InputError for fewer than 2 steps."""
        require_steps(steps)
        first_skip = max(self.warmup, predictions_needed(self.order))
        computed = computed_steps(steps, first_skip, self.interval)
        return Plan("".join("D" if now else "." for now in computed), tuple(buckets))
