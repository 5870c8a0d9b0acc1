"""A plan's measured quality, and which plan a level takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from accelaes_export.errors import InputError
from accelaes_export.policies import DriftSchedule
from accelaes_export.policies.plan_quality import SHARES, PlanQuality, bracketed, cheapest, require_level, said

QUALITY = PlanQuality((40.0, 39.0, 41.0), (38.0, 37.5, 39.0), 31.0, (15.0, 14.0, 16.0), 160, 16, "2026-11-28")


def schedule(low=None):
    quality = None if low is None else replace(QUALITY, dense_steps=(low + 1, low, low + 2))
    return DriftSchedule("DD.D", 0.3, 1.0, 0.5, quality=quality)


def test_a_level_takes_the_cheapest_plan_whose_interval_lies_above_its_bound():
    plans = {6: schedule(13.9), 8: schedule(20.0), 10: schedule(19.0), 12: schedule(28.0), 14: schedule()}
    assert [cheapest(plans, level, 28) for level in ("fast", "balanced", "high")] == [8, 8, 12]
    assert [cheapest(plans, level, 20) for level in ("fast", "balanced", "high")] == [6, 8, 8]
    assert cheapest(plans, "high", 40) is None
    assert sorted(SHARES.values()) == [0.5, 0.7, 1.0]


def test_without_a_measurement_nothing_is_promised():
    with pytest.raises(InputError, match=r"No plan of this bundle was measured.*accelaes-export tune"):
        cheapest({8: schedule()}, "fast", 28)
    with pytest.raises(InputError, match="No plan of this bundle"):
        cheapest({}, "fast", 28)


@pytest.mark.parametrize("level", ["", "High", "best", None, 1])
def test_another_level_is_refused_with_those_there_are(level):
    with pytest.raises(InputError, match="allowed are high, balanced, fast"):
        require_level(level)


@pytest.mark.parametrize(
    "change",
    [
        {"psnr": (float("nan"), 1.0, 2.0)},
        {"psnr_to_dense": (1.0, 2.0, float("inf"))},
        {"dense_steps": (3.0, 4.0, 2.0)},
        {"worst": float("nan")},
        {"pictures": 0},
        {"exact_steps": 0},
        {"dense_steps": (1.0, -1.0, 2.0)},
    ],
)
def test_numbers_that_no_measurement_gives_are_refused(change):
    with pytest.raises(InputError):
        replace(QUALITY, **change)


def test_it_is_data_and_said_in_words():
    adapter = TypeAdapter(DriftSchedule)
    own = schedule(14.0)
    assert adapter.validate_json(adapter.dump_json(own)) == own
    assert bracketed(QUALITY.dense_steps) == "15.0 (14.0-16.0)"
    assert said(QUALITY) == (
        "as near to exact pictures as 15.0 (14.0-16.0) dense steps, worst 31.0 dB (16 pictures, 2026-11-28)"
    )
    assert said(None) == "not measured"
