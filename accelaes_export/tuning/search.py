"""Evolution of plans: the best known ones are changed at a few steps, and kept where that brings them nearer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

DENSE, SKIP = "D", "."

POPULATION = 12
RIVALS = 3
"""A parent is the best of so many, drawn from the population."""

SLACK = 0.5
"""Dense steps that a plan may leave unspent, or just less than its cheapest symbol's."""

TRIES = 10_000
"""Changes in a row that give no new plan within the budget before a search has seen all there are."""


@dataclass(frozen=True)
class Space:
    """The plans that are searched.

    Attributes:
        costs: of each symbol, in dense steps; `D` and `.` among them.
        budget: dense steps a plan costs at most, and little less.
        most: steps a plan has at most.
    """

    costs: Mapping[str, float]
    budget: float
    most: int

    def cost(self, symbols: str) -> float:
        return sum(self.costs[symbol] for symbol in symbols)

    def holds(self, symbols: str) -> bool:
        """Whether a plan is one of them."""
        slack = max(SLACK, min(cost for cost in self.costs.values() if cost > 0) - 1e-6)
        within = self.budget - slack - 1e-9 <= self.cost(symbols) <= self.budget + 1e-9
        return within and symbols[:1] == DENSE and 2 <= len(symbols) <= self.most

    def brought_in(self, symbols: str, draw: random.Random) -> str | None:
        """A plan made dearer or cheaper, a step at a time, until it is one of them; None where that doesn't come."""
        if symbols[:1] != DENSE or not 2 <= len(symbols) <= self.most or not set(symbols) <= set(self.costs):
            return None
        for _ in range(8 * self.most):
            if self.holds(symbols):
                return symbols
            dearer = self.cost(symbols) < self.budget
            if dearer and set(symbols) == {DENSE} and len(symbols) < self.most:
                symbols += SKIP
            i = draw.randrange(1, len(symbols))
            own = self.costs[symbols[i]]
            others = [one for one, cost in self.costs.items() if (cost > own if dearer else cost < own)]
            if others:
                symbols = symbols[:i] + draw.choice(others) + symbols[i + 1 :]
        return None

    def changed(self, symbols: str, draw: random.Random) -> str:
        """A plan with one to three steps set anew, exchanged, put in or taken out; it may lie outside."""
        steps, letters = list(symbols), sorted(self.costs)
        for _ in range(draw.choice((1, 1, 2, 3))):
            how, i = draw.random(), draw.randrange(1, max(2, len(steps)))
            if i >= len(steps) or (0.65 <= how < 0.85 and len(steps) < self.most):
                steps.insert(i, draw.choice([one for one in letters if one != DENSE]))
            elif how < 0.35:
                steps[i] = draw.choice((*letters, SKIP))
            elif how < 0.65:
                j = draw.randrange(1, len(steps))
                steps[i], steps[j] = steps[j], steps[i]
            elif len(steps) > 2:
                del steps[i]
        return "".join(steps)


@dataclass(frozen=True, order=True)
class Found:
    """A plan and how far it ends from where it should."""

    distance: float
    symbols: str


def evolved(
    space: Space,
    starts: Iterable[str],
    rungs: Sequence[Callable[[str], float]],
    *,
    evaluations: int,
    seed: int,
    watch: Callable[[int, Found], None] | None = None,
) -> list[Found]:
    """The best plans found, nearest first; the same for the same seed.

    Args:
        starts: plans to begin with; those outside the space are brought in.
        rungs: distances of a plan's pictures to what they should be, each dearer and surer than the one before. A plan
            that is farther at one of them than half of a full population gets no further.
        evaluations: how many plans are tried at most.
        watch: is told how many have been tried, and the best.
    """
    draw = random.Random(seed)
    tried: set[str] = set()
    at: dict[str, list[float]] = {}
    population: list[Found] = []

    def climbs(symbols: str) -> bool:
        own = at[symbols] = []
        for k, rung in enumerate(rungs):
            own.append(rung(symbols))
            full, last = len(population) == POPULATION, k + 1 == len(rungs)
            if full and not last and own[k] > median(at[one.symbols][k] for one in population):
                return False
        return True

    def consider(symbols: str | None) -> None:
        if symbols is None or symbols in tried or not space.holds(symbols) or len(tried) >= evaluations:
            return
        tried.add(symbols)
        if climbs(symbols):
            population.append(Found(at[symbols][-1], symbols))
            population.sort()
            del population[POPULATION:]
        if watch is not None:
            watch(len(tried), population[0])

    for symbols in starts:
        consider(space.brought_in(symbols, draw))
    in_vain = 0
    while population and len(tried) < evaluations and in_vain < TRIES:
        before = len(tried)
        parent = min(draw.sample(population, min(RIVALS, len(population))))
        consider(space.changed(parent.symbols, draw))
        in_vain = 0 if len(tried) > before else in_vain + 1
    return population
