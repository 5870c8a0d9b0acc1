"""Learning on losses that are known: it finds what they ask for, goes on where it was stopped, and keeps the budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelaes_export.policies.layer_schedule import CANDIDATES
from accelaes_export.sparsity.baselines import METHODS
from accelaes_export.sparsity.table import Table
from accelaes_export.sparsity.training import Learning, Lesson, learned

STEPS, PARTS = 9, 4
TABLE = Table.of(STEPS, PARTS, CANDIDATES, 0.5)
SHARES = torch.tensor(CANDIDATES)
WEIGHTS = torch.from_numpy(np.random.default_rng(0).lognormal(sigma=1.5, size=(STEPS - 1, PARTS))).float()


def loss(_, choices):
    """Each part's missing share harms by a weight of its own."""
    return (WEIGHTS * (1 - choices @ SHARES) ** 2).sum()


def distance(chosen):
    return loss(0, TABLE.one_hot(chosen)).item()


def least():
    """By the dynamic programme, as these harms add up."""
    costs = (WEIGHTS[..., None] * (1 - SHARES) ** 2).double().numpy()
    return distance(TABLE.cheapest(costs))


def test_it_comes_near_the_best_there_is_from_gradients_alone():
    lesson = Lesson(TABLE, 3, Learning(iterations=120))
    found = learned(lesson, loss, distance, 12, lambda *_: None)
    assert found.sum() <= TABLE.most
    assert least() <= distance(found) < 1.1 * least()
    assert distance(found) < 0.6 * min(distance(TABLE.even()), distance(METHODS["random"](TABLE, distance, 200, 0)))


def test_the_first_stage_finds_the_steps_that_matter():
    heavy = [1, 2, 6]
    weights = torch.ones(STEPS - 1, PARTS)
    weights[heavy] = 50.0
    lesson = Lesson(TABLE, 1, Learning(iterations=60))
    while lesson.done < 20:
        lesson.advance(lambda _, choices: (weights * (1 - choices @ SHARES) ** 2).sum())
    assert (lesson.chosen[heavy] == 4).all()


def test_a_stopped_lesson_goes_on_as_if_it_hadnt_been():
    how = Learning(iterations=18)
    whole, first, second = (Lesson(TABLE, 3, how) for _ in range(3))
    expected = learned(whole, loss, distance, 4, lambda *_: None)
    for stop in (3, 6, 7, 15):
        while first.done < stop:
            first.advance(loss)
            if first.done % 4 == 0:
                first.compare(distance)
        second = Lesson(TABLE, 3, how)
        second.restore(first.state())
        assert (second.done, second.least) == (stop, first.least)
        first = second
    assert np.array_equal(learned(first, loss, distance, 4, lambda *_: None), expected)
    assert first.least == whole.least


@given(st.integers(2, 6), st.integers(1, 3), st.floats(0.1, 1))
@settings(deadline=None, max_examples=30)
def test_every_method_keeps_the_budget(steps, parts, budget):
    if budget * steps < 1:
        return
    table = Table.of(steps, parts, CANDIDATES, budget)

    def far(chosen):
        assert chosen.shape == (steps - 1, parts)
        return float((4 - chosen).sum())

    for method in METHODS.values():
        assert method(table, far, 6, 0).sum() <= table.most
    lesson = Lesson(table, 1, Learning(iterations=3))
    found = learned(lesson, lambda _, y: (1 - y @ SHARES).square().sum(), far, 2, lambda *_: None)
    assert found.sum() <= table.most


def test_greedy_takes_from_what_harms_least():
    """Of two parts one matters ten times as much, and of the steps the last: what is left is there."""
    table = Table.of(4, 2, CANDIDATES, 0.5)
    weights = np.outer([1, 1, 10], [1, 10])
    found = METHODS["greedy"](table, lambda chosen: float((weights * (4 - chosen) ** 2).sum()), 0, 0)
    assert found.sum() == table.most == 8
    assert found[2, 1] == 4 and found[0, 0] == 0


@pytest.mark.parametrize("method", ["random", "evolutionary"])
def test_what_is_drawn_by_chance_is_the_same_every_time_and_the_best_of_what_was_tried(method):
    tried = []

    def watched(chosen):
        tried.append(distance(chosen))
        return tried[-1]

    first = METHODS[method](TABLE, watched, 40, 7)
    assert len(tried) == 40 and distance(first) == min(tried)
    assert np.array_equal(first, METHODS[method](TABLE, distance, 40, 7))
    assert not np.array_equal(first, METHODS[method](TABLE, distance, 40, 8))
