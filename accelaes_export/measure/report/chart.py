"""Geometry of the charts: where on an axis a value lies, in percent of the plot, so that a chart fits any width.

Lengths in percent and texts in fixed sizes: a bar grows with the screen, its label stays readable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low` to `high` with a tick every `step`; all three in the unit of the values."""

    low: float
    high: float
    step: float

    @property
    def ticks(self) -> tuple[float, ...]:
        """Multiples of `step` from `low` to `high`, both included."""
        count = round((self.high - self.low) / self.step)
        return tuple(self.low + k * self.step for k in range(count + 1))

    def at(self, value: float) -> float:
        """Where `value` lies, in percent of the way from `low` to `high`; not beyond either."""
        return 100.0 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def text(self, tick: float) -> str:
        """A tick with as many decimals as tell it from its neighbours."""
        decimals = next(k for k in range(12) if math.isclose(round(self.step, k), self.step, rel_tol=1e-6))
        return f"{tick:.{decimals}f}"


def axis(values: Iterable[float], *, ticks: int = 5, zero: bool = True) -> Axis:
    """The scale that shows all `values`: round numbers at its ends, about `ticks` steps, from 0 unless `zero` is False.

    Values that aren't finite are left out; without any the scale is 0 to 1.
    """
    shown = [value for value in values if math.isfinite(value)]
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    if zero:
        low, high = min(0.0, low), max(0.0, high)
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / ticks
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(nice * magnitude for nice in _NICE if nice * magnitude >= raw * (1 - 1e-9))
    # A value that lies on a tick, but for rounding, needs no further one.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, step)


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart, in the unit of its axis.

    Attributes:
        label: the row's name.
        text: what is written at the row's end.
        value: the bar's length.
        low, high: of the spread drawn over its end, or None.
        limit: where a mark is drawn across the bar, or None.
        kind: "own" or "other": its colour, beside the label.
    """

    label: str
    text: str
    value: float
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    kind: str = "own"


@dataclass(frozen=True)
class BarChart:
    """Bars from 0 on one axis. `title` says what is shown, `unit` what the numbers at the axis are."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    axis: Axis


def bar_chart(title: str, unit: str, bars: Sequence[Bar]) -> BarChart:
    """The chart whose axis shows every bar's end, spread and limit."""
    shown = [number for bar in bars for number in (bar.value, bar.high, bar.limit) if number is not None]
    return BarChart(title, unit, tuple(bars), axis(shown))


@dataclass(frozen=True)
class Timeline:
    """A plan as columns, one a step, whose heights are n/N.

    Attributes:
        name: of the policy or peer.
        symbols: the plan.
        fractions: n/N of each step; 0 where nothing is computed.
        detail: what is written beside the name.
    """

    name: str
    symbols: str
    fractions: tuple[float, ...]
    detail: str = ""

    @property
    def cost(self) -> float:
        """Computed token-steps in dense steps."""
        return math.fsum(self.fractions)


@dataclass(frozen=True)
class Point:
    """One mark of a scatter chart: at `x` and `y`, with an interval of y, or None. `number` stands in it, and beside
    `label` in the legend.

    `best`: no other point has as low an x with a better y, or a lower x with as good a y.
    """

    number: int
    label: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Scatter:
    """Points over two axes, with the line through those that no other beats; `x_name` and `y_name` have the units."""

    x_name: str
    y_name: str
    points: tuple[Point, ...]
    x: Axis
    y: Axis

    @property
    def front(self) -> tuple[Point, ...]:
        """The points no other beats, by rising x."""
        return tuple(sorted((point for point in self.points if point.best), key=lambda point: point.x))


def scatter(
    x_name: str,
    y_name: str,
    points: Sequence[Point],
    *,
    better: Literal["higher", "lower", "neither"] = "higher",
) -> Scatter:
    """The chart of `points`; marked best are those that no other beats, none where neither direction of y is better."""
    sign = {"higher": 1.0, "lower": -1.0, "neither": 0.0}[better]

    def beats(one: Point, other: Point) -> bool:
        gain, saving = sign * (one.y - other.y), other.x - one.x
        return gain >= 0 and saving >= 0 and (gain > 0 or saving > 0)

    marked = tuple(replace(p, best=bool(sign) and not any(beats(other, p) for other in points)) for p in points)
    heights = [number for p in points for number in (p.y, p.low, p.high) if number is not None]
    x, y = axis((p.x for p in points), zero=False), axis(heights, zero=False)
    return Scatter(x_name, y_name, marked, x, y)
