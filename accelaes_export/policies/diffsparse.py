"""DiffSparse: at every step each part of each block computes the share of tokens a learned schedule gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from accelaes_export.errors import InputError
from accelaes_export.policies.base import BasePolicy, Extrapolation
from accelaes_export.policies.layer_schedule import LayerSchedule
from accelaes_export.policies.plan import Plan


@dataclass(frozen=True)
class DiffSparse(BasePolicy):
    """Every part of every block computes its own share of the tokens, and reuses its output for the others.

    For bundles built with `--layerwise RANKING`. `tune --method diffsparse` learns schedules.

    Attributes:
        schedule: the shares, from a file that `tune` wrote (`run --schedule FILE`).

    Raises:
        InputError: for a schedule that isn't one.
    """

    schedule: LayerSchedule | Mapping[str, Any]

    name: ClassVar[str] = "diffsparse"

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", LayerSchedule.of(self.schedule))

    @property
    def shares(self) -> LayerSchedule:
        """The schedule."""
        return LayerSchedule.of(self.schedule)

    @property
    def extrapolation(self) -> Extrapolation:
        return Extrapolation(order=0)  # every token is predicted at every step, so nothing is

    @property
    def own_steps(self) -> int | None:
        return self.shares.steps

    @property
    def keeps_steps(self) -> bool:
        return True

    def plan(self, steps: int, buckets: Sequence[float] = (), shares: Sequence[float] = ()) -> Plan:
        """``D*******…``; InputError for another number of steps than the schedule's."""
        own = self.shares
        if steps != own.steps:
            raise InputError(
                f"The schedule is for runs of {own.steps} steps, and this one has {steps}: ask for {own.steps}, or "
                "learn one for as many."
            )
        return Plan("D" + "*" * (steps - 1), tuple(buckets), tuple(shares), own.keep)
