"""The evolution of plans, on distances that are known by heart."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.tuning.search import SLACK, Space, evolved

COSTS = {"D": 1.0, ".": 0.0, "a": 0.25, "b": 0.5, "c": 0.75}


def far_from(best):
    """Steps that differ from the best plan's, and how many there are too many or too few."""
    return lambda symbols: sum(x != y for x, y in zip(symbols, best, strict=False)) + abs(len(symbols) - len(best))


def test_a_search_finds_the_best_plan_there_is():
    space = Space(COSTS, 4, 6)
    every = ["".join(p) for T in range(2, 7) for p in product(COSTS, repeat=T) if space.holds("".join(p))]
    distance = far_from("DD.bDb")
    assert "DD.bDb" in every and len(every) > 500
    found = evolved(space, ["DDDD"], [distance], evaluations=len(every), seed=0)
    assert (found[0].symbols, found[0].distance) == ("DD.bDb", min(map(distance, every)))
    assert found == sorted(found)


@given(budget=st.sampled_from((2, 3.5, 6, 8)), seed=st.integers(0, 99), starts=st.lists(st.text("D.abc", min_size=1)))
def test_no_plan_that_is_tried_breaks_the_budget_or_is_tried_twice(budget, seed, starts):
    space, tried = Space(COSTS, budget, 12), []

    def distance(symbols):
        tried.append(symbols)
        return far_from("DbbDDa..D")(symbols)

    found = evolved(space, starts, [distance], evaluations=20, seed=seed)
    assert len(tried) == len(set(tried)) <= 20
    for symbols in tried:
        cost = sum(COSTS[symbol] for symbol in symbols)
        assert symbols[0] == "D" and len(symbols) <= 12 and budget - SLACK <= cost <= budget
    assert {one.symbols for one in found} <= set(tried)
    again = evolved(space, starts, [distance], evaluations=20, seed=seed)
    assert again == found


def test_it_says_how_far_it_is_and_ends_when_it_has_seen_all_there_are():
    seen = []
    space = Space({"D": 1.0, ".": 0.0}, 2, 3)
    found = evolved(
        space, ["DD"], [far_from("D.D")], evaluations=99, seed=1, watch=lambda k, best: seen.append((k, best.distance))
    )
    assert sorted(one.symbols for one in found) == ["D.D", "DD", "DD."]
    assert [k for k, _ in seen] == [1, 2, 3] and seen[-1][1] == 0


def test_without_buckets_there_is_a_plan_for_every_budget():
    space = Space({"D": 1.0, ".": 0.0}, 3.7, 6)
    found = evolved(space, ["DDDD"], [far_from("D.DD.")], evaluations=99, seed=0)
    assert found[0].symbols == "D.DD."


@pytest.mark.parametrize("start", ["", "D", "DDDDDDDDDDDDDDDDDDDD", ".D.D", "D0D"])
def test_a_start_that_cant_be_brought_in_is_left_out(start):
    assert evolved(Space(COSTS, 3, 6), [start], [far_from("DDD")], evaluations=5, seed=0) == []


def test_a_plan_that_is_farther_than_most_at_a_rung_climbs_no_further():
    near, first, second = far_from("DD.bDb"), [], []

    def cheap(symbols):
        first.append(symbols)
        return near(symbols)

    def dear(symbols):
        second.append(symbols)
        return near(symbols)

    space = Space(COSTS, 4, 6)
    found = evolved(space, ["DDDD"], [cheap, dear], evaluations=300, seed=0)
    assert found[0].symbols == "DD.bDb"
    assert len(first) == 300 and len(second) < 150 and set(second) <= set(first)
    assert {one.symbols for one in found} <= set(second)
