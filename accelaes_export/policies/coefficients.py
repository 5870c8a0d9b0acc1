"""Learned solver coefficients: what a step of a plan feeds the scheduler, as a sum of a token's own last predictions.

At step i a token's prediction is Σ_j w_j E_j over its last three computed ones, newest first. The weights w depend on
the step, on the half of guidance, and on the token's class: its age and the gaps between the three, in steps. They are
fitted to a checkpoint, a plan and a sampler (docs/tuning.md), and are data: nothing here learns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from accelaes_export.checks import is_finite
from accelaes_export.errors import InputError

if TYPE_CHECKING:
    import torch

DEPTH = 3
"""How many of a token's computed predictions are weighed."""

MOST_APART = 20
"""No class is of more steps: classes are looked up in a table of all that there can be."""

TOLERANCE = 1e-3
"""How far a run's sigmas may be from those the coefficients are for, of the largest."""

Weights = tuple[float, float, float]


@dataclass(frozen=True)
class TokenClass:
    """The weights of one class of tokens at one step.

    Attributes:
        age: steps since the token was computed last; 0 where it was now.
        gap: between its last two computations; 0 where there was one.
        earlier: between the two before; 0 where there were no three.
        uncond, cond: the weights of its last three predictions, newest first, in each half of guidance pairs.
    """

    age: int
    gap: int
    earlier: int
    uncond: Weights
    cond: Weights

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name in ("age", "gap", "earlier"):
            steps = getattr(self, name)
            if not 0 <= steps <= MOST_APART:
                raise InputError(f"A class of tokens has {name} {steps!r}; allowed are 0 to {MOST_APART} steps.")
        for name in ("uncond", "cond"):
            weights = getattr(self, name)
            if len(weights) != DEPTH or not all(map(is_finite, weights)):
                raise InputError(f"A class of tokens has the weights {name} {weights!r}; give three numbers.")


@dataclass(frozen=True)
class Coefficients:
    """The weights of every step of one plan.

    A class that a step has no weights for holds its last prediction.

    Attributes:
        sigmas: [T + 1] of the schedule they were fitted on, down to 0.
        guidance: the scale they were fitted at.
        steps: [T] of classes.

    Raises:
        InputError: for numbers out of range, a class twice, or as many steps as the sigmas aren't for.
    """

    sigmas: tuple[float, ...]
    guidance: float
    steps: tuple[tuple[TokenClass, ...], ...]

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if not self.steps or len(self.sigmas) != len(self.steps) + 1:
            raise InputError(
                f"The coefficients are of {len(self.steps)} steps and {len(self.sigmas)} sigmas; give a list of "
                "classes for each step, and one sigma more than there are steps."
            )
        if not all(map(is_finite, self.sigmas)) or any(
            after >= before for before, after in zip(self.sigmas, self.sigmas[1:], strict=False)
        ):
            raise InputError("The coefficients' sigmas don't fall from step to step; give those of the schedule.")
        if not (is_finite(self.guidance) and self.guidance >= 0):
            raise InputError(f"The coefficients' guidance is {self.guidance!r}; give a scale of at least 0.")
        for i, classes in enumerate(self.steps):
            if len({(own.age, own.gap, own.earlier) for own in classes}) < len(classes):
                raise InputError(f"Step {i} of the coefficients has a class of tokens twice; give each once.")

    @classmethod
    def of(cls, data: Any) -> Coefficients:
        """From plain data, as `data` gives it; InputError where it isn't such."""
        if isinstance(data, cls):
            return data
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise InputError(f"The coefficients can't be read: {place}: {first['msg']}.") from error

    def data(self) -> Mapping[str, Any]:
        """As plain data."""
        return asdict(self)

    def require_for(self, symbols: str) -> None:
        """InputError where they can't be of the plan `symbols`."""
        if len(self.steps) != len(symbols):
            raise InputError(
                f"The coefficients are of {len(self.steps)} steps, but the plan {symbols} has {len(symbols)}: give "
                "those fitted to this plan."
            )

    def fit(self, sigmas: Any) -> bool:
        """Whether they are for a schedule of these sigmas."""
        own, most = self.sigmas, max(self.sigmas)
        return len(sigmas) == len(own) and all(
            math.isclose(one, other, abs_tol=TOLERANCE * most) for one, other in zip(own, sigmas, strict=True)
        )

    @cached_property
    def ages(self) -> int:
        """How many ages the table knows: all that have weights, and one for what is older."""
        return 2 + max((own.age for classes in self.steps for own in classes), default=0)

    @cached_property
    def gaps(self) -> int:
        """How many gaps the table knows, and one for what is larger."""
        return 2 + max((max(own.gap, own.earlier) for classes in self.steps for own in classes), default=0)

    def table(self) -> torch.Tensor:
        """[T, 2, ages, gaps, gaps, 3] fp32: the weights by step, half (conditional: 1), age and both gaps."""
        import torch

        found = torch.zeros(len(self.steps), 2, self.ages, self.gaps, self.gaps, DEPTH)
        found[..., 0] = 1.0
        for i, classes in enumerate(self.steps):
            for own in classes:
                for half, weights in enumerate((own.uncond, own.cond)):
                    found[i, half, own.age, own.gap, own.earlier] = torch.tensor(weights)
        return found
