"""The dynamic programme finds what trying everything finds, and never spends more than it has."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from accelaes_export.errors import InputError
from accelaes_export.policies.layer_schedule import CANDIDATES
from accelaes_export.sparsity.budget import cheapest
from accelaes_export.sparsity.table import Table

COST = st.one_of(st.floats(-5, 5, width=32), st.just(np.inf))


@given(st.data())
def test_nothing_that_keeps_the_budget_is_cheaper(data):
    rows, candidates = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    units = np.array(data.draw(st.lists(st.integers(0, 4), min_size=candidates, max_size=candidates)))
    most = data.draw(st.integers(0, 4 * rows))
    costs = data.draw(arrays.arrays(np.float64, (rows, candidates), elements=COST))
    tried = [
        (sum(costs[row, s] for row, s in enumerate(choice)), choice)
        for choice in itertools.product(range(candidates), repeat=rows)
        if sum(units[s] for s in choice) <= most
    ]
    least = min((cost for cost, _ in tried), default=np.inf)
    if not np.isfinite(least):
        with pytest.raises(ValueError, match="no choice"):
            cheapest(costs, units, most)
        return
    found = cheapest(costs, units, most)
    assert units[found].sum() <= most
    assert sum(costs[np.arange(rows), found]) == pytest.approx(least, abs=1e-9)


def test_of_equal_choices_the_smaller_is_taken():
    assert cheapest(np.zeros((3, 5)), np.arange(5), 9).tolist() == [0, 0, 0]


def test_the_papers_size_takes_seconds():
    rng, table = np.random.default_rng(0), Table.of(20, 28 * 3, CANDIDATES, 0.46)
    started = time.monotonic()
    chosen = table.cheapest(rng.normal(size=(19, 84, 5)))
    assert time.monotonic() - started < 5
    assert chosen.sum() <= table.most


@given(st.integers(2, 12), st.integers(1, 7), st.floats(0.05, 1), st.integers(0, 2**32 - 1))
def test_a_table_spends_a_share_of_all_steps_the_first_included(steps, parts, budget, seed):
    if budget * steps < 1:
        with pytest.raises(InputError, match="the first step"):
            Table.of(steps, parts, CANDIDATES, budget)
        return
    table = Table.of(steps, parts, CANDIDATES, budget)
    wanted = np.random.default_rng(seed).uniform(-1, 5, size=(steps - 1, parts))
    for chosen in (table.even(), table.nearest(wanted)):
        assert table.schedule(chosen, "norm", [f"{k}.ff" for k in range(parts)]).share <= budget + 1e-9
        assert chosen.min() >= 0 and chosen.max() <= 4
    assert table.even().max() - table.even().min() <= 1
    assert table.even().sum() == table.most
    whole = table.whole_steps
    assert len(set(table.spread(whole))) == whole and table.without(whole).most >= 0
