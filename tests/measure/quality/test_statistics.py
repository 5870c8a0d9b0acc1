"""Intervals against loops over lists, and against what theory says of them."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from accelaes_export.measure.quality.statistics import RESAMPLES, interval, mean, median, psnr_of_mean_error

TABLES = arrays(
    np.float64,
    st.tuples(st.integers(1, 6), st.integers(1, 4)),
    elements=st.one_of(st.floats(-100, 100), st.just(math.nan)),
)


def there(values: np.ndarray) -> list[float]:
    return [value for value in values.ravel().tolist() if not math.isnan(value)]


@given(TABLES)
def test_mean_and_median_are_of_the_values_there_are(values: np.ndarray) -> None:
    for of_lines, of_list in ((mean, statistics.fmean), (median, statistics.median)):
        for line, found in zip(values, of_lines(values), strict=True):
            if there(line):
                assert found == pytest.approx(of_list(there(line)), abs=1e-9)
            else:
                assert math.isnan(found)


@given(st.lists(st.floats(5, 80), min_size=1, max_size=8))
def test_pooled_psnr_is_that_of_the_mean_squared_error(decibels: list[float]) -> None:
    errors = [10 ** (-value / 10) for value in decibels]
    expected = -10 * math.log10(sum(errors) / len(errors))
    assert psnr_of_mean_error(np.array(decibels)) == pytest.approx(expected)


def test_equal_pictures_have_infinite_psnr_but_do_not_hide_others() -> None:
    assert psnr_of_mean_error(np.array([math.inf, math.inf])) == math.inf
    assert psnr_of_mean_error(np.array([math.inf, 40.0])) == pytest.approx(40 + 10 * math.log10(2))
    found = interval(np.array([[math.inf], [40.0], [math.inf]]), psnr_of_mean_error)
    assert found is not None and found.high == math.inf and found.low == pytest.approx(40)


@given(TABLES)
def test_the_interval_is_between_percentiles_of_resampled_prompts(values: np.ndarray) -> None:
    found = interval(values, mean, resamples=50, seed=3)
    lines = [there(line) for line in values if there(line)]
    if not lines:
        assert found is None
        return
    assert found is not None
    everything = [value for line in lines for value in line]
    assert (found.pictures, found.prompts) == (len(everything), len(lines))
    assert found.value == pytest.approx(statistics.fmean(everything), abs=1e-9)
    if len(lines) == 1:
        assert (found.low, found.high) == (None, None)
        return
    drawn = []
    for picked in np.random.default_rng(3).integers(len(lines), size=(50, len(lines))):
        drawn.append(statistics.fmean([value for k in picked for value in lines[k]]))
    drawn.sort()
    # Of 50 sorted values the 2.5th percentile lies between the second and the third, the 97.5th as far from the top.
    assert (found.low, found.high) == (pytest.approx(drawn[1], abs=1e-9), pytest.approx(drawn[-2], abs=1e-9))


def test_the_interval_is_as_wide_as_the_central_limit_theorem_says() -> None:
    values = np.random.default_rng(0).normal(10, 2, (400, 1))
    found = interval(values, mean)
    assert found is not None and found.low is not None and found.high is not None
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_seeds_that_agree_do_not_narrow_the_interval() -> None:
    """What the same prompt gives three times is one observation."""
    once = np.random.default_rng(1).normal(size=(30, 1))
    single, thrice = interval(once, mean), interval(np.repeat(once, 3, axis=1), mean)
    assert single is not None and thrice is not None
    assert (thrice.low, thrice.high) == (pytest.approx(single.low), pytest.approx(single.high))
    assert (single.pictures, thrice.pictures) == (30, 90)


def test_large_tables_are_resampled_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).normal(size=(40, 2))
    whole = interval(values, mean)
    monkeypatch.setattr("accelaes_export.measure.quality.statistics._NUMBERS_AT_ONCE", 700)
    assert interval(values, mean) == whole
    assert RESAMPLES % (700 // values.size) == 0 or RESAMPLES > 700 // values.size
