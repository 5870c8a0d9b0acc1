"""Learning which share every part computes at every step: a cost matrix, dynamic programming and a straight-through
estimator, in two stages (DiffSparse, section 3.2 and algorithm 1).

Two things are otherwise than in the paper. Costs move by gradients over their common size, not by AdamW, which moves
every cost by as much however little it matters; and the first stage's schedules spend all of the budget on whole steps.
docs/sparsity.md has what either is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from accelaes_export.sparsity.table import Chosen, Table

Loss = Callable[[int, torch.Tensor], torch.Tensor]
"""Of picture k's run by choices [T - 1, parts, candidates]: how far it ends from where it should."""

_MOMENTUM = 0.9


@dataclass(frozen=True)
class Learning:
    """How schedules are learned.

    Attributes:
        iterations: of the second stage, a picture each; the first has a third of it.
        rate: how far a cost moves whose gradient is as large as the root mean square of all.
        first: how much dearer candidates are when the second stage begins, by the square of how far they are from what
            the first one left.
        delta: δ, what is taken off the cost of computing all at the steps that the first stage left whole.
        compare_every: iterations; the schedule that is best then, as the engine draws it, is the one that is kept.
    """

    iterations: int = 96
    rate: float = 5.0
    first: float = 160.0
    delta: float = 10.0
    compare_every: int = 16


class Lesson:
    """Both stages, iteration by iteration.

    Args:
        pictures: how many there are; they are taken in turn.

    Attributes:
        done: iterations.
        best, least: the schedule that was nearest when they were compared, and how near; none and infinity before.
    """

    def __init__(self, table: Table, pictures: int, how: Learning) -> None:
        self._table, self._pictures, self._how = table, pictures, how
        self._count = table.whole_steps
        self._step_costs = torch.zeros(table.steps - 1)  # C_f: of a step's being whole, against not
        # Evenly spread steps are whole at first. Later ones follow where others turn out to be cheaper.
        self._step_costs[table.spread(self._count)] = -how.delta
        self._costs = torch.zeros(table.steps - 1, table.parts, len(table.shares))  # C_l
        self._moved = torch.zeros_like(self._costs)
        self._moved_steps = torch.zeros_like(self._step_costs)
        self.done = 0
        self.best: Chosen | None = None
        self.least = float("inf")
        if not self._first_stage:
            self._merge()

    @property
    def iterations(self) -> int:
        """Of both stages."""
        return self._first_stage + self._how.iterations

    @property
    def _first_stage(self) -> int:
        return self._how.iterations // 3 if 0 < self._count < self._table.steps - 1 else 0

    @property
    def chosen(self) -> Chosen:
        """Candidates [T - 1, parts] by the costs as they are."""
        if self.done < self._first_stage:
            return self._by_steps()
        return self._table.cheapest(self._costs.double().numpy())

    def advance(self, loss: Loss) -> float:
        """One iteration; returns its loss."""
        hard = self._table.one_hot(self.chosen)
        taken = hard.requires_grad_(True)  # straight through: the choice itself has the gradient
        found = loss(self.done % self._pictures, taken)
        found.backward()
        assert taken.grad is not None
        gradient = taken.grad
        if self.done < self._first_stage:
            harm = (gradient[..., -1] - gradient[..., 0]).sum(dim=1)
            self._moved_steps = _MOMENTUM * self._moved_steps + (1 - _MOMENTUM) * harm
            self._step_costs += self._how.rate * _of_unit_size(self._moved_steps)
        else:
            # What a candidate harms against the one that is taken.
            harm = gradient - (gradient * hard.detach()).sum(dim=-1, keepdim=True)
            self._moved = _MOMENTUM * self._moved + (1 - _MOMENTUM) * harm
            left = 1 - (self.done - self._first_stage) / self._how.iterations
            self._costs += self._how.rate * min(1.0, 2 * left) * _of_unit_size(self._moved)
        self.done += 1
        if self.done == self._first_stage:
            self._merge()
        return found.item()

    def compare(self, distance: Callable[[Chosen], float]) -> None:
        """Keep the schedule as it is where it is nearer than what is kept."""
        chosen = self.chosen
        near = distance(chosen)
        if near < self.least:
            self.best, self.least = chosen, near

    def state(self) -> dict[str, torch.Tensor]:
        """All of it, as tensors."""
        found = {"costs": self._costs, "step_costs": self._step_costs, "done": torch.tensor(self.done)}
        found |= {"moved": self._moved, "moved_steps": self._moved_steps}
        if self.best is not None:
            found |= {"best": torch.from_numpy(self.best), "least": torch.tensor(self.least, dtype=torch.float64)}
        return {name: tensor.clone() for name, tensor in found.items()}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from there."""
        self.done = int(state["done"])
        self._costs, self._step_costs = state["costs"].clone(), state["step_costs"].clone()
        self._moved, self._moved_steps = state["moved"].clone(), state["moved_steps"].clone()
        if "best" in state:
            self.best, self.least = state["best"].numpy(), float(state["least"])

    def _by_steps(self) -> Chosen:
        """Some steps whole, the others with what is left, evenly."""
        table = self._table
        order = np.argsort(self._step_costs.numpy(), kind="stable")
        full = set(order[: self._count].tolist())
        chosen = np.full((table.steps - 1, table.parts), len(table.shares) - 1)
        others = [i for i in range(table.steps - 1) if i not in full]
        if others:
            chosen[others] = table.without(self._count).even()
        return chosen

    def _merge(self) -> None:
        """The second stage begins with what the first one left, its whole steps dearly held (Eq. 9)."""
        row = torch.from_numpy(self._by_steps())
        top = len(self._table.shares) - 1
        shares = torch.tensor(self._table.shares)
        self._costs = self._how.first * (shares - (row / top)[..., None]) ** 2
        whole = (row == top).all(dim=1)
        self._costs[whole, :, -1] -= self._how.delta


def _of_unit_size(gradient: torch.Tensor) -> torch.Tensor:
    """Over its root mean square."""
    return gradient / gradient.square().mean().sqrt().clamp_min(1e-20)


def learned(
    lesson: Lesson, loss: Loss, distance: Callable[[Chosen], float], every: int, after: Callable[[Lesson, float], None]
) -> Chosen:
    """The best schedule of the two stages.

    Args:
        distance: of pictures by a schedule, as the engine draws them; asked for after `every` iterations.
        after: called after every iteration, with its loss.
    """
    while lesson.done < lesson.iterations:
        found = lesson.advance(loss)
        if lesson.done % every == 0 or lesson.done == lesson.iterations:
            lesson.compare(distance)
        after(lesson, found)
    assert lesson.best is not None, "a lesson ends with a comparison"
    return lesson.best
