"""The cheapest shares of all parts at all steps that keep a budget: exact dynamic programming (DiffSparse, Eq. 6-7)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cheapest(costs: NDArray[np.float64], units: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Which candidate each row takes, so that their costs' sum is least and their units' sum `most` at most: [K].

    F(l, r) = min over s of F(l-1, r - s) + C(l, s), for all r at once. Of equal sums the one with fewer units is taken.

    Args:
        costs: C [K, S], of candidate s in row l; any numbers, infinite where it mustn't be taken.
        units: [S], what each candidate takes of the budget, 0 or more.

    Raises:
        ValueError: no choice keeps the budget.
    """
    rows, candidates = costs.shape
    best = np.zeros(most + 1)  # F(0, r): nothing is chosen yet, at no cost
    taken = np.zeros((rows, most + 1), dtype=np.int8)
    order = np.argsort(units, kind="stable")  # fewer units first, and only less cost takes their place
    for row in range(rows):
        found, which = np.full(most + 1, np.inf), taken[row]
        for s in order[units[order] <= most]:
            own = best[: most + 1 - units[s]] + costs[row, s]
            better = own < found[units[s] :]
            found[units[s] :][better] = own[better]
            which[units[s] :][better] = s
        best = found
    if not np.isfinite(best[most]):
        raise ValueError(f"{rows} rows of {candidates} candidates have no choice of {most} units")
    chosen = np.empty(rows, dtype=np.int64)
    left = most
    for row in reversed(range(rows)):
        chosen[row] = taken[row, left]
        left -= int(units[chosen[row]])
    return chosen
