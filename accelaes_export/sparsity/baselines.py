"""Schedules that aren't learned, to compare with: even, random, greedy and evolutionary (DiffSparse, A.5.4)."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from accelaes_export.sparsity.table import Chosen, Table

Distance = Callable[[Chosen], float]
"""How far pictures by these choices end from where they should; takes a run of all of them."""

POPULATION = 50
MUTATION = 0.01
"""The paper's, of its genetic algorithm."""


def uniform(table: Table, distance: Distance, evaluations: int, seed: int) -> Chosen:
    """The same share everywhere."""
    return table.even()


def random(table: Table, distance: Distance, evaluations: int, seed: int) -> Chosen:
    """The best of so many drawn by chance."""
    rng = np.random.default_rng(seed)
    return min((_by_chance(table, rng) for _ in range(evaluations)), key=distance)


def greedy(table: Table, distance: Distance, evaluations: int, seed: int) -> Chosen:
    """From all computed, share by share is taken away where that harms least.

    What it harms is measured step by step and part by part: how far pictures end where one step, or one part at all
    steps, computes half. A part's share at a step is taken to harm by the product of both, growing by its square.
    """
    top = len(table.shares) - 1
    whole = np.full((table.steps - 1, table.parts), top)

    def harm(rows: int | slice, columns: int | slice) -> float:
        half = whole.copy()
        half[rows, columns] = top // 2
        return distance(half)

    by_step = np.array([harm(i, slice(None)) for i in range(table.steps - 1)])
    by_part = np.array([harm(slice(None), k) for k in range(table.parts)])
    harms = np.outer(by_step, by_part)
    left = whole.copy()
    queue = [(float(harms[place]), place) for place in np.ndindex(*left.shape)]
    heapq.heapify(queue)
    while left.sum() > table.most:
        _, place = heapq.heappop(queue)
        left[place] -= 1
        if left[place]:
            missing = top - left[place]
            heapq.heappush(queue, (float(harms[place] * ((missing + 1) ** 2 - missing**2)), place))
    return left


def evolutionary(table: Table, distance: Distance, evaluations: int, seed: int) -> Chosen:
    """A genetic algorithm: children of two good ones, each row from either, a few changed by chance."""
    rng = np.random.default_rng(seed)
    size = max(2, min(POPULATION, evaluations // 3))
    found = [(distance(own), k, own) for k, own in enumerate(_by_chance(table, rng) for _ in range(size))]
    for k in range(size, evaluations):
        found.sort(key=lambda one: one[:2])
        first, second = rng.choice(max(2, size // 2), size=2, replace=False)
        either = rng.random(found[0][2].shape) < 0.5
        child = np.where(either, found[first][2], found[second][2]).astype(float)
        changed = rng.random(child.shape) < MUTATION
        child[changed] = rng.integers(0, len(table.shares), size=int(changed.sum()))
        kept = table.nearest(child)
        found.append((distance(kept), k, kept))
    return min(found, key=lambda one: one[:2])[2]


def _by_chance(table: Table, rng: np.random.Generator) -> Chosen:
    """One that keeps the budget, every candidate as likely as any other where it can be."""
    return table.nearest(rng.integers(0, len(table.shares), size=(table.steps - 1, table.parts)).astype(float))


METHODS: dict[str, Callable[[Table, Distance, int, int], Chosen]] = {
    "uniform": uniform,
    "random": random,
    "greedy": greedy,
    "evolutionary": evolutionary,
}
