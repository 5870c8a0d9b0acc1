"""Charts say where things are: axes have round ends, places are proportional, and the front is what nothing beats."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.measure.report import formats
from accelaes_export.measure.report.chart import Bar, Point, axis, bar_chart, scatter

values = st.floats(min_value=-1e9, max_value=1e9).filter(lambda value: value == 0 or abs(value) > 1e-9)


@given(st.lists(values, min_size=1, max_size=20), st.booleans())
def test_an_axis_shows_all_values_between_round_ticks_that_are_not_too_many(shown: list[float], zero: bool) -> None:
    found = axis(shown, zero=zero)
    slack = 1e-6 * found.step
    assert found.low - slack <= min(shown) and max(shown) <= found.high + slack
    assert 2 <= len(found.ticks) <= 8
    assert found.ticks[0] == found.low and math.isclose(found.ticks[-1], found.high, abs_tol=slack)
    if zero:
        assert found.low - slack <= 0 <= found.high + slack
    significant = found.step / 10 ** math.floor(math.log10(found.step) + 1e-9)
    assert min(abs(significant - nice) for nice in (1, 2, 2.5, 5)) < 1e-6


@given(st.lists(st.floats(min_value=1e-6, max_value=1e6), min_size=2, max_size=10))
def test_from_zero_places_are_proportional_to_values(shown: list[float]) -> None:
    found = axis(shown)
    for value in shown:
        assert math.isclose(found.at(value) / found.at(max(shown)), value / max(shown), rel_tol=1e-9)


def test_nothing_lies_beyond_an_axis_and_what_is_not_finite_makes_none() -> None:
    assert (axis([1.0]).at(-5), axis([1.0]).at(5)) == (0.0, 100.0)
    assert axis([math.inf, math.nan, 3.0]) == axis([3.0])
    assert axis([]).ticks[-1] == 1.0 and axis([7.0], zero=False).low <= 7


@pytest.mark.parametrize(("high", "texts"), [(1.0, ["0.0", "0.2", "1.0"]), (0.1, ["0.00", "0.02", "0.10"])])
def test_ticks_are_written_with_the_decimals_that_tell_them_apart(high: float, texts: list[str]) -> None:
    found = axis([high])
    assert [found.text(found.ticks[k]) for k in (0, 1, -1)] == texts


def test_a_bar_charts_axis_reaches_spreads_and_limits() -> None:
    chart = bar_chart("t", "ms", [Bar("a", "", 1.0, 0.5, 7.9), Bar("b", "", 2.0, limit=11.0)])
    assert chart.axis.high >= 11.0 and chart.axis.low == 0.0


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(points, st.sampled_from(["higher", "lower"]))
def test_the_front_is_every_point_that_no_other_beats(places: list[tuple[int, int]], better: str) -> None:
    chart = scatter("x", "y", [Point(k, str(k), x, y) for k, (x, y) in enumerate(places)], better=better)
    for k, (x, y) in enumerate(places):
        beaten = False
        for other_x, other_y in places:
            as_good = other_y >= y if better == "higher" else other_y <= y
            beaten |= other_x <= x and as_good and (other_x, other_y) != (x, y)
        assert chart.points[k].best is not beaten
    assert [p.x for p in chart.front] == sorted(x for p, (x, _) in zip(chart.points, places, strict=True) if p.best)


def test_where_neither_way_is_better_there_is_no_front() -> None:
    assert scatter("x", "y", [Point(1, "a", 1, 2), Point(2, "b", 3, 4)], better="neither").front == ()


@given(st.floats(min_value=1e-300, max_value=1e12), st.integers(1, 6))
def test_significant_digits_say_the_number(value: float, digits: int) -> None:
    assert math.isclose(float(formats.significant(value, digits)), value, rel_tol=0.51 * 10 ** (1 - digits))
    assert formats.significant(-value, digits) == "−" + formats.significant(value, digits)


def test_numbers_that_are_none_are_written_too() -> None:
    texts = [formats.significant(value) for value in (math.inf, -math.inf, math.nan, 0.0)]
    assert texts == ["∞", "−∞", "–", "0"]
    assert formats.plain({"a": [1, 2.5, True, None], "b": {}}) == "a 1, 2.5, yes, none, b none"
