"""Plans by dynamic programming: what each step would miss, and the plan that misses least within a budget.

Both are along the teacher's way: a step's miss is that of the best weighted sum of predictions made there, so how plans
lead away from it, and caches, are left out. What is found is where a search begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from accelaes_export.tuning.fitting import NormalEquations

UNITS = 64
"""Of a dense step: costs are counted in whole ones, rounded up, so that no budget is broken."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Misses:
    """Squared misses of a schedule's steps, by how many steps before it the last computed one was.

    Attributes:
        symbols: that a step can be.
        costs: theirs, in dense steps.
        first: of step 0, which is dense.
        table: [T - 1, A, S], of steps 1 on, whose last computed step was 1 to A before; infinite where a step can't be
            that symbol.
    """

    symbols: str
    costs: tuple[float, ...]
    first: float
    table: Floats


def best_plan(misses: Misses, budget: float) -> str | None:
    """The plan of least summed misses that costs at most `budget`: exact. None where even the cheapest costs more.

    State: how far back the last computed step lies, and what was spent. A computed step leads to 1, a skipped one one
    further.
    """
    steps, ages, kinds = misses.table.shape
    units = [int(np.ceil(cost * UNITS - 1e-9)) for cost in misses.costs]
    skips = [symbol == "." for symbol in misses.symbols]
    limit = int(np.floor(budget * UNITS + 1e-9)) - UNITS  # without the first step
    if limit < 0:
        return None
    best = np.full((ages + 1, limit + 1), np.inf)  # the last age is where a plan may end alone
    best[0, 0] = misses.first
    came: list[NDArray[np.int16]] = []  # by step: [ages, spent], the age it came from and the symbol taken
    for i in range(steps):
        after = np.full_like(best, np.inf)
        taken = np.full((2, *best.shape), -1, dtype=np.int16)
        for age in range(ages):
            for k in range(kinds):
                to = age + 1 if skips[k] else 0
                if units[k] > limit or not np.isfinite(misses.table[i, age, k]):
                    continue
                reached = np.full(limit + 1, np.inf)
                reached[units[k] :] = best[age, : limit + 1 - units[k]] + misses.table[i, age, k]
                better = reached < after[to]
                after[to][better] = reached[better]
                taken[0, to][better], taken[1, to][better] = age, k
        best = after
        came.append(taken)
    if not np.isfinite(best).any():
        return None
    age, spent = (int(place) for place in np.unravel_index(np.argmin(best), best.shape))
    symbols: list[str] = []
    for taken in reversed(came):
        age, k = int(taken[0, age, spent]), int(taken[1, age, spent])
        symbols.append(misses.symbols[k])
        spent -= units[k]
    return "D" + "".join(reversed(symbols))


@dataclass(frozen=True)
class Seen:
    """What is known of a schedule's step along the teacher's way.

    Attributes:
        columns: [b, N, w] of each half of guidance, as they add up to the guided prediction.
        wanted: [b, N, w] that would lead to where the teacher goes.
        change: |σ_{i+1} − σ_i|.
    """

    columns: tuple[Floats, ...]
    wanted: Floats
    change: float


def misses_of(seen: Sequence[Seen], costs: Mapping[str, float], ages: int) -> Misses:
    """Every step's misses.

    Args:
        seen: every step's, in order.
        costs: of each symbol in dense steps; letters' are the share of tokens that they compute.
        ages: A.
    """
    symbols = "".join(sorted(costs))
    table = np.full((len(seen) - 1, ages, len(symbols)), np.inf)
    for i in range(1, len(seen)):
        for age in range(1, min(ages, i) + 1):
            dense = _missed(seen, i, i, i - age)
            last = i - age
            held = _missed(seen, i, last, last - min(age, last))
            order = np.argsort(-_moved(seen, last, last - min(age, last)), axis=1)
            for k, symbol in enumerate(symbols):
                count = round(costs[symbol] * dense.shape[1])
                focus = np.zeros(dense.shape, dtype=bool)
                np.put_along_axis(focus, order[:, :count], values=True, axis=1)
                table[i - 1, age - 1, k] = np.where(focus, dense, held).mean()
    first = float(_missed(seen, 0, 0, 0).mean())
    return Misses(symbols, tuple(costs[symbol] for symbol in symbols), first, table)


def _missed(seen: Sequence[Seen], i: int, newest: int, before: int) -> Floats:
    """Per token [b, N]: what step i misses by the best weights of the predictions of two steps."""
    own = seen[i]
    columns = list(seen[newest].columns)
    if before != newest:
        columns += [new - old for new, old in zip(columns, seen[before].columns, strict=True)]
    halves = len(seen[newest].columns)
    sums = NormalEquations(len(columns))
    flat = np.stack([column.ravel() for column in columns], axis=1)
    sums.add(flat, own.wanted.ravel(), own.wanted.shape[0] * own.wanted.shape[1])
    rule = np.array([1.0] * halves + [0.0] * (len(columns) - halves))
    weights = sums.solved(rule, np.arange(len(columns)))
    missed: Floats = own.wanted - sum(weight * column for weight, column in zip(weights, columns, strict=True))
    per_token: Floats = np.square(missed * own.change).mean(axis=-1)
    return per_token


def _moved(seen: Sequence[Seen], newest: int, before: int) -> Floats:
    """Per token [b, N]: how far the guided prediction moved between two steps."""
    change = sum(new - old for new, old in zip(seen[newest].columns, seen[before].columns, strict=True))
    per_token: Floats = np.square(change).mean(axis=-1)
    return per_token
