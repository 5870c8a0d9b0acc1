"""Plans by dynamic programming against every plan there is, and misses against float64 least squares."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.tuning.foresight import Misses, Seen, best_plan, misses_of

COSTS = {".": 0.0, "D": 1.0, "a": 0.25, "b": 0.3}


def random_misses(steps, ages, seed):
    rng = np.random.default_rng(seed)
    table = rng.random((steps - 1, ages, len(COSTS)))
    table[rng.random(table.shape) < 0.1] = np.inf
    return Misses("".join(COSTS), tuple(COSTS.values()), rng.random(), table)


def total(misses, symbols):
    """A plan's summed misses; infinite where it can't be."""
    found, age = misses.first, 1
    for i, symbol in enumerate(symbols[1:]):
        if age > misses.table.shape[1]:
            return np.inf
        found += misses.table[i, age - 1, misses.symbols.index(symbol)]
        age = age + 1 if symbol == "." else 1
    return found


@given(st.integers(2, 6), st.integers(1, 4), st.sampled_from((1, 1.3, 2, 2.55, 3, 4.6)), st.integers(0, 10**6))
def test_it_is_the_best_of_all_plans_within_the_budget(steps, ages, budget, seed):
    misses = random_misses(steps, ages, seed)
    cost = dict(zip(misses.symbols, misses.costs, strict=True))
    # Costs in whole sixty-fourths, rounded up: .3 counts as 20 / 64.
    units = {symbol: np.ceil(64 * own - 1e-9) for symbol, own in cost.items()}
    every = ["D" + "".join(rest) for rest in product(misses.symbols, repeat=steps - 1)]
    within = [plan for plan in every if sum(units[symbol] for symbol in plan) <= 64 * budget + 1e-9]
    right = min((total(misses, plan) for plan in within), default=np.inf)
    found = best_plan(misses, budget)
    if found is None:
        assert not np.isfinite(right)
        return
    assert len(found) == steps and found[0] == "D"
    assert sum(cost[symbol] for symbol in found) <= budget + 1e-9
    assert total(misses, found) == pytest.approx(right)


def test_no_budget_for_the_first_step_is_no_plan():
    assert best_plan(random_misses(4, 3, 0), 0.5) is None


def test_a_schedule_as_long_as_the_papers_takes_a_moment():
    rng = np.random.default_rng(0)
    misses = Misses(".Dabc", (0, 1, 0.25, 0.5, 0.75), 0.0, rng.random((159, 8, 5)))
    found = best_plan(misses, 60)
    assert len(found) == 160


def seen(steps, seed=0, halves=2):
    rng = np.random.default_rng(seed)
    shape = (3, 20, 4)
    return [
        Seen(tuple(rng.normal(size=shape) for _ in range(halves)), rng.normal(size=shape), 0.1 * (k + 1))
        for k in range(steps)
    ]


def test_misses_are_those_of_least_squares_in_float64():
    steps = seen(5)
    found = misses_of(steps, COSTS, ages=3)
    i, age = 3, 2
    own = steps[i]
    columns = [*own.columns, *(new - old for new, old in zip(own.columns, steps[i - age].columns, strict=True))]
    flat = np.stack([column.ravel() for column in columns], axis=1)
    weights, *_ = np.linalg.lstsq(flat, own.wanted.ravel(), rcond=None)
    right = np.square((own.wanted.ravel() - flat @ weights) * own.change).mean()
    assert found.table[i - 1, age - 1, found.symbols.index("D")] == pytest.approx(right, rel=1e-3)
    held = found.table[i - 1, age - 1, found.symbols.index(".")]
    sparse = found.table[i - 1, age - 1, found.symbols.index("a")]
    assert min(right, held) < sparse < max(right, held) or sparse == pytest.approx(held, rel=0.2)
    assert not np.isfinite(found.table[0, 1:]).any()  # nothing was computed before the first step


def test_a_step_that_repeats_the_one_before_is_not_worth_computing():
    steps = seen(6)
    steady = [Seen(steps[0].columns, sum(steps[0].columns), 0.1) for _ in range(6)]
    found = misses_of(steady, COSTS, ages=5)
    assert found.table[:, 0].max() < 1e-6
    assert best_plan(found, 6) in {"D" + "".join(rest) for rest in product(COSTS, repeat=5)}
    assert best_plan(found, 1) == "D....."
