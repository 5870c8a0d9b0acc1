"""How near a plan's pictures come to exact ones, where that was measured, and the levels that are promised by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from accelaes_export.errors import InputError

if TYPE_CHECKING:
    from accelaes_export.policies.drift_plans import DriftSchedule

Level = Literal["high", "balanced", "fast"]

SHARES: Mapping[Level, float] = {"high": 1.0, "balanced": 0.7, "fast": 0.5}
"""Of the model's own number of dense steps: a level's pictures are as near to exact ones as so many steps' are."""

Interval = tuple[float, float, float]
"""A figure, and its 95 % interval over prompts: value, low, high."""


@dataclass(frozen=True)
class PlanQuality:
    """What was measured of a plan on one checkpoint, on pictures that it wasn't tuned on.

    Attributes:
        psnr: dB of the mean squared error to pictures of `exact_steps` dense steps from the same noise.
        psnr_to_dense: dB to pictures of the model's own number of dense steps.
        worst: dB of the picture that is farthest from its exact one.
        dense_steps: how many plain dense steps have that `psnr`; at most the most that were measured.
        exact_steps: dense steps of the pictures taken for right.
        pictures: how many were measured, each of a prompt of its own.
        date: ISO.

    Raises:
        InputError: numbers that no measurement gives.
    """

    psnr: Interval
    psnr_to_dense: Interval
    worst: float
    dense_steps: Interval
    exact_steps: int
    pictures: int
    date: str

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("psnr", "psnr_to_dense", "dense_steps"):
            value, low, high = getattr(self, name)
            if not all(map(math.isfinite, (value, low, high))) or low > high:
                raise InputError(f"{name} is {value:g} ({low:g} to {high:g}); give a finite value with its interval.")
        if not math.isfinite(self.worst) or min(self.exact_steps, self.pictures) < 1 or self.dense_steps[1] < 0:
            raise InputError("A plan's quality is of at least one picture and one exact step, and finite.")

    def keeps(self, level: Level, steps: int) -> bool:
        """Whether the level holds on a model of `steps` dense steps: in all but a fortieth of draws of the prompts."""
        return self.dense_steps[1] >= SHARES[level] * steps


def bracketed(figure: Interval) -> str:
    """A figure with its interval."""
    value, low, high = figure
    return f"{value:.1f} ({low:.1f}-{high:.1f})"


def said(quality: PlanQuality | None) -> str:
    """In a sentence's part, for tables and reports."""
    if quality is None:
        return "not measured"
    return (
        f"as near to exact pictures as {bracketed(quality.dense_steps)} dense steps, worst {quality.worst:.1f} dB "
        f"({quality.pictures} pictures, {quality.date})"
    )


def require_level(level: object) -> Level:
    """InputError, which names the levels, for another."""
    if level not in SHARES:
        raise InputError(f"quality is {level!r}; allowed are {', '.join(SHARES)}.")
    return level  # type: ignore[return-value]


def cheapest(plans: Mapping[float, DriftSchedule], level: Level, steps: int) -> float | None:
    """The smallest budget whose plan keeps the level on a model of `steps` dense steps; None: no plan does.

    Raises:
        InputError: no plan was measured.
    """
    measured = {budget: plan.quality for budget, plan in plans.items() if plan.quality is not None}
    if not measured:
        raise InputError(
            "No plan of this bundle was measured on its checkpoint, so none can be promised; tune it (accelaes-export "
            "tune, then build --tuning), or name a policy."
        )
    return min((budget for budget, quality in measured.items() if quality.keeps(level, steps)), default=None)
