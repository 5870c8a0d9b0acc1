"""Every token at every step: the baseline the others are measured against, and the same with fewer steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from accelaes_export.errors import InputError
from accelaes_export.policies.base import BasePolicy, Extrapolation
from accelaes_export.policies.plan import Plan
from accelaes_export.policies.schedule import require_steps, require_whole


@dataclass(frozen=True)
class Dense(BasePolicy):
    """All N tokens are computed at every step; cost T.

    Attributes:
        theta: θ, how far past each step the prediction fed to the scheduler is extrapolated, in steps; 0: not at all.
    """

    theta: float = 0.0

    name: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        _ = self.extrapolation  # checks theta

    @property
    def extrapolation(self) -> Extrapolation:
        """No token goes uncomputed, so without θ no second prediction is kept."""
        return Extrapolation(order=1 if self.theta else 0, theta=self.theta)

    def plan(self, steps: int, buckets: Sequence[float] = (), shares: Sequence[float] = ()) -> Plan:
        """``D`` for each of the T steps; InputError for fewer than 1."""
        require_steps(steps, at_least=1)
        return Plan("D" * steps, tuple(buckets))


@dataclass(frozen=True)
class FewerSteps(Dense):
    """Dense on a shorter schedule: what anybody does first who wants to pay less.

    Attributes:
        budget: T. `run` takes it where no number of steps is given; pipelines are called with it.
    """

    budget: float = 14

    name: ClassVar[str] = "fewer-steps"

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = int(self.budget) if isinstance(self.budget, float) and self.budget.is_integer() else self.budget
        require_whole("budget", whole, at_least=2)

    @property
    def own_steps(self) -> int | None:
        return int(self.budget)

    @property
    def keeps_steps(self) -> bool:
        return True

    def plan(self, steps: int, buckets: Sequence[float] = (), shares: Sequence[float] = ()) -> Plan:
        """``D`` for each of the steps, of which there may be fewer (img2img), but no more than the budget."""
        if isinstance(steps, int) and steps > self.budget:
            raise InputError(
                f"Policy fewer-steps has a budget of {self.budget:g} steps, but the run has {steps}: ask for "
                f"{self.budget:g} steps, or raise the budget."
            )
        return super().plan(steps, buckets, shares)
