"""What there is to choose: a candidate share for every part at every step, within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from accelaes_export.errors import InputError
from accelaes_export.policies.layer_schedule import LayerSchedule, Ranking
from accelaes_export.sparsity.budget import cheapest

Chosen: TypeAlias = NDArray[np.int64]
"""[T - 1, parts] of candidates, of the steps after the first."""


@dataclass(frozen=True)
class Table:
    """The size of what is chosen, and what it may cost.

    Attributes:
        steps: T; the first computes all and isn't chosen.
        parts: of a step.
        shares: the candidates', ascending from 0 to 1, in equal distances.
        most: what all rows together may take, in the candidates' distance.
    """

    steps: int
    parts: int
    shares: tuple[float, ...]
    most: int

    @classmethod
    def of(cls, steps: int, parts: int, shares: Sequence[float], budget: float) -> Table:
        """For a `budget` in share of all parts' tokens at all steps, the first included.

        Raises:
            InputError: a budget that the first step alone takes.
        """
        units = len(shares) - 1
        most = int(budget * steps * parts * units + 1e-9) - parts * units
        if most < 0:
            raise InputError(
                f"The budget {budget:g} of {steps} steps is less than the first step, which computes all; give at "
                f"least {1 / steps:g}."
            )
        return cls(steps, parts, tuple(shares), most)

    @property
    def share(self) -> float:
        """That each row gets where all get the same."""
        return self.most / ((self.steps - 1) * self.parts * (len(self.shares) - 1))

    def even(self) -> Chosen:
        """Every row as near to the same share as the candidates allow, spread over steps and parts."""
        rows = (self.steps - 1) * self.parts
        edges = np.minimum((np.arange(rows + 1) * self.most) // rows, self.most)
        return np.minimum(np.diff(edges), len(self.shares) - 1).reshape(self.steps - 1, self.parts)

    def cheapest(self, costs: NDArray[np.float64]) -> Chosen:
        """By costs [T - 1, parts, S]."""
        chosen = cheapest(costs.reshape(-1, len(self.shares)), np.arange(len(self.shares)), self.most)
        return chosen.reshape(self.steps - 1, self.parts)

    def nearest(self, wanted: NDArray[np.float64]) -> Chosen:
        """What keeps the budget, nearest to numbers of candidates [T - 1, parts], by the sum of squares."""
        apart = wanted[..., None] - np.arange(len(self.shares))
        return self.cheapest(apart**2)

    @property
    def whole_steps(self) -> int:
        """How many steps after the first the budget is for, if all of it goes into whole ones."""
        return min(self.steps - 1, self.most // (self.parts * (len(self.shares) - 1)))

    def spread(self, count: int) -> list[int]:
        """`count` of the rows' steps, as evenly as they can be."""
        return [round((k + 0.5) * (self.steps - 1) / count - 0.5) for k in range(count)]

    def without(self, count: int) -> Table:
        """Of the other steps, where `count` are whole."""
        taken = count * self.parts * (len(self.shares) - 1)
        return replace(self, steps=self.steps - count, most=self.most - taken)

    def one_hot(self, chosen: Chosen) -> torch.Tensor:
        """[T - 1, parts, S] fp32."""
        return torch.nn.functional.one_hot(torch.from_numpy(np.ascontiguousarray(chosen)), len(self.shares)).float()

    def schedule(self, chosen: Chosen, ranking: Ranking, parts: Sequence[str]) -> LayerSchedule:
        """As runs take it."""
        rows = [[self.shares[candidate] for candidate in row] for row in chosen]
        return LayerSchedule(ranking, tuple(parts), ((1.0,) * len(parts), *(tuple(row) for row in rows)))
