"""Fits of a class's weights, against least squares written out in float64."""

from __future__ import annotations

import numpy as np
import pytest

from accelaes_export.tuning.fitting import LEAST, RIDGE, Key, NormalEquations, fitted

THETA = 0.2


def drawn(halves: int, seed: int, numbers: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((numbers, 3 * halves)) * np.tile([1.0, 0.3, 0.1], halves)
    return columns, columns @ rng.standard_normal(3 * halves) + 0.1 * rng.standard_normal(numbers)


def sums_of(columns: np.ndarray, wanted: np.ndarray, tokens: int = LEAST) -> NormalEquations:
    """In three parts, as pictures come."""
    sums = NormalEquations(columns.shape[1])
    for own, right in zip(np.array_split(columns, 3), np.array_split(wanted, 3), strict=True):
        sums.add(own, right, tokens)
    return sums


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("known", [1, 2, 3])
def test_they_are_least_squares_with_a_ridge_towards_the_rule(halves: int, known: int) -> None:
    columns, wanted = drawn(halves, seed=known)
    key = Key(1, 2 if known > 1 else 0, 3 if known > 2 else 0, stale=False)
    assert key.known == known
    rule = np.tile(key.rule(THETA), halves)
    used = [3 * half + k for half in range(halves) for k in range(known)]
    # The same by rows: what is left over the rule, and a row a weight that holds it to 0.
    pull = np.sqrt(RIDGE * np.square(columns[:, used]).sum(axis=0))
    rows = np.concatenate([columns[:, used], np.diag(pull)])
    found = rule.copy()
    found[used] += np.linalg.lstsq(rows, np.concatenate([wanted - columns @ rule, np.zeros(len(used))]), rcond=None)[0]
    own = fitted(key, sums_of(columns, wanted), THETA)
    assert (own.age, own.gap, own.earlier) == (key.age, key.gap, key.earlier)
    newest, change, earlier = np.array([1.0, 2.0, -3.0]), np.array([0.5, 1.0, 1.0]), np.array([0.25, -1.0, 2.0])
    predictions = [newest, newest - change, newest - change - earlier]
    for half, weights in enumerate((own.uncond, own.cond)):
        part = found[-3:] if halves == 1 else found[3 * half : 3 * half + 3]
        wanted_sum = part[0] * newest + part[1] * change + part[2] * earlier
        assert np.allclose(sum(w * e for w, e in zip(weights, predictions, strict=True)), wanted_sum, atol=1e-6)


def test_a_small_class_keeps_the_rule() -> None:
    columns, wanted = drawn(2, seed=0, numbers=30)
    own = fitted(Key(1, 2, 1, stale=False), sums_of(columns, wanted, tokens=LEAST // 4), THETA)
    assert own.cond == own.uncond == pytest.approx((1 + 0.6, -0.6, 0.0))


@pytest.mark.parametrize(
    ("key", "far"),
    [(Key(0, 1, 1, False), 0.2), (Key(1, 2, 0, False), 0.6), (Key(0, 0, 0, False), 0.0), (Key(2, 1, 1, True), 0.0)],
)
def test_the_rule_is_linear_to_theta_and_holds_stale_tokens(key: Key, far: float) -> None:
    assert key.rule(THETA) == pytest.approx([1.0, far, 0.0])


def test_nothing_is_made_of_a_column_that_is_zero() -> None:
    columns, wanted = drawn(1, seed=1)
    columns[:, 1:] = 0.0
    own = fitted(Key(1, 1, 1, stale=False), sums_of(columns, wanted), THETA)
    assert np.isfinite(own.cond).all() and own.cond[2] == 0.0
