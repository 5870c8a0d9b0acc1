"""Timing: turns, warm-up, percentiles and ratios, against clocks and figures made by hand."""

from __future__ import annotations

import statistics
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.measure.profiling.timing import HostStopwatch, Timing, first_call, interleaved, ratios, spread


class Clock:
    """A clock that moves only when work is done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float):
        """Work that takes the given seconds at its first, second ... call, and the last of them from then on."""
        left = list(seconds)

        def piece() -> None:
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return piece


def timed(clock: Clock, work: dict, **options):
    return interleaved(work, HostStopwatch(clock), now=clock, **options)


def test_the_first_call_is_kept_apart_and_warm_up_is_not_measured() -> None:
    clock = Clock()
    found = timed(clock, {"a": clock.work("a", 9.0, 5.0, 5.0, 1.0, 2.0, 3.0)}, rounds=3, warmup=2)
    assert found["a"].first == 9.0
    assert found["a"].rounds == [1.0, 2.0, 3.0]
    assert found["a"].host == found["a"].rounds


def test_every_round_does_every_piece_once_in_a_drawn_order() -> None:
    clock, names = Clock(), ["a", "b", "c", "d"]
    timed(clock, {name: clock.work(name, 1.0) for name in names}, rounds=30, warmup=2, seed=3)
    rounds = [clock.log[k : k + 4] for k in range(4, len(clock.log), 4)]
    assert clock.log[:4] == names  # first calls
    assert len(rounds) == 32 and all(sorted(order) == names for order in rounds)
    assert len({tuple(order) for order in rounds}) > 10
    for place in range(4):  # nobody is always first or last
        assert max(Counter(order[place] for order in rounds).values()) < 16


def test_the_same_seed_draws_the_same_order() -> None:
    logs = []
    for _ in range(2):
        clock = Clock()
        timed(clock, {name: clock.work(name, 1.0) for name in "abc"}, rounds=5, warmup=0, seed=7)
        logs.append(clock.log)
    assert logs[0] == logs[1]


def test_a_value_is_the_mean_of_its_calls() -> None:
    clock = Clock()
    found = timed(clock, {"a": clock.work("a", 9.0, 1.0, 2.0, 3.0, 6.0)}, rounds=1, warmup=0, calls=4)
    assert found["a"].rounds == [3.0]


def test_what_a_piece_left_behind_is_kept_for_measured_rounds_alone() -> None:
    clock, kept = Clock(), []
    timed(
        clock,
        {"a": clock.work("a", 1.0)},
        rounds=2,
        warmup=3,
        measured=lambda name: kept.append(f"{name} measured"),
        unmeasured=lambda: kept.append("dropped"),
    )
    assert kept == ["dropped"] * 4 + ["a measured"] * 2


def test_the_device_is_waited_for_around_every_value_and_not_within() -> None:
    """A device that lags behind: marks are its own time, and the host's clock runs apart."""

    class Lagging:
        def __init__(self) -> None:
            self.enqueued = self.waits = 0

        def mark(self) -> float:
            return 10.0 * self.enqueued

        def seconds(self, start: float, end: float) -> float:
            return end - start

        def wait(self) -> None:
            self.waits += 1

    watch, clock = Lagging(), Clock()

    def enqueue() -> None:
        watch.enqueued += 1
        clock.now += 0.5

    found = interleaved({"a": enqueue}, watch, rounds=2, warmup=0, calls=3, now=clock)
    assert (found["a"].rounds, found["a"].host) == ([10.0, 10.0], [0.5, 0.5])
    assert watch.waits == 2 + 2 * 2  # the first call's two, then two a round


def test_a_first_call_waits_for_the_device() -> None:
    clock = Clock()
    assert first_call(clock.work("a", 4.0), HostStopwatch(clock), clock) == 4.0


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40))
def test_a_spread_is_numpys(values: list[float]) -> None:
    found = spread(values)
    assert found.median == pytest.approx(statistics.median(values))
    assert (found.p10, found.p90) == pytest.approx(tuple(np.percentile(values, [10, 90])))
    assert (found.minimum, found.count) == (min(values), len(values))


def test_ratios_are_formed_within_rounds() -> None:
    """A machine that gets slower by and by: the ratio stays what it is, though the medians' spread is wide."""
    drift = [1.0, 1.5, 2.0, 3.0, 5.0]
    found = ratios(Timing(rounds=[2 * d for d in drift]), Timing(rounds=[1 * d for d in drift]))
    assert (found.median, found.p10, found.p90) == (2.0, 2.0, 2.0)


def test_ratios_of_unequal_rounds_are_refused() -> None:
    with pytest.raises(ValueError):
        ratios(Timing(rounds=[1.0, 2.0]), Timing(rounds=[1.0]))
