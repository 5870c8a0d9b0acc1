"""Step equivalence against cost, of benchmarks/policies.py's figures, as one SVG file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from accelaes_export.measure.report.chart import Axis, axis

WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 70, 730, 64, 490  # of the plot
RADIUS = 6.0
INK, FAINT, PAPER = "#222222", "#d9d9d9", "#ffffff"


@dataclass(frozen=True)
class Mark:
    """How a policy's points look; shape and filling tell them apart without the colour."""

    colour: str
    corners: tuple[tuple[float, float], ...] = ()  # of a polygon in units of the radius; none: a circle
    filled: bool = True


def _star(points: int, outer: float, inner: float) -> tuple[tuple[float, float], ...]:
    turns = [math.pi * k / points for k in range(2 * points)]
    radii = [inner if k % 2 else outer for k in range(2 * points)]
    return tuple((radius * math.sin(turn), -radius * math.cos(turn)) for radius, turn in zip(radii, turns, strict=True))


_SQUARE = ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9))
_DIAMOND = ((0.0, -1.3), (1.1, 0.0), (0.0, 1.3), (-1.1, 0.0))
_UP = ((0.0, -1.2), (1.15, 0.9), (-1.15, 0.9))
_DOWN = ((0.0, 1.2), (1.15, -0.9), (-1.15, -0.9))
MARKS = {
    "drift": Mark("#0072b2"),
    "accelaes": Mark("#d55e00", _SQUARE),
    "ras": Mark("#a8478a", _DOWN),
    "stepcache": Mark("#009e73", _DIAMOND),
    "teacache": Mark("#222222", _star(5, outer=1.5, inner=0.65)),
    "taylorseer": Mark("#b87a00", _UP, filled=False),
    "fora": Mark("#3a8fc7", filled=False),
    "delta-dit": Mark("#6b6b6b", _SQUARE, filled=False),
}


def chart(figures: Mapping[str, Any]) -> str:
    """The SVG: one mark a case of the group "policies" with its interval, a line through drift's, and k = 1.

    k is read from a curve of dense runs; what is worse than its fewest steps or better than its most can't be told
    apart, and is shaded.
    """
    rows = [row for row in figures["cases"] if row["group"] == "policies"]
    steps = [row["steps"] for row in figures["cases"] if row["group"] == "curves" and "theta" not in row["options"]]
    x = axis((row["token_steps"] for row in rows), ticks=7, zero=False)
    y = axis([row["k"]["high"] for row in rows])
    plot = _Plot(x, y)
    present = [policy for policy in MARKS if any(row["policy"] == policy for row in rows)]
    seeds = len(figures["seeds"])
    asked = f"{figures['prompts']} prompts × {seeds} noise{'s' if seeds > 1 else ''}"
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
        _text(LEFT, 26, "Step equivalence k against cost", size=18, anchor="start"),
        _text(LEFT, 47, f"{asked}; thin bars: 95 % intervals. Higher is better.", size=13, anchor="start"),
        *plot.shaded(min(steps), max(steps)),
        *plot.axes("cost, in dense steps", "dense steps of equal PSNR to 160 steps / cost"),
        *plot.line([row for row in rows if row["policy"] == "drift"], MARKS["drift"].colour),
    ]
    # Later ones lie over earlier ones, and what lies under an empty one shows.
    for policy in sorted(present, key=lambda policy: not MARKS[policy].filled):
        for row in rows:
            if row["policy"] == policy:
                parts += plot.point(row)
    for place, policy in enumerate(present):
        at = TOP + 20 + 26 * place
        parts += [_shape(MARKS[policy], RIGHT + 28, at), _text(RIGHT + 44, at + 5, policy, anchor="start")]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="Helvetica, Arial, sans-serif" fill="{INK}">\n{body}\n</svg>\n'
    )


@dataclass(frozen=True)
class _Plot:
    """Where costs and equivalences lie, in the file's pixels."""

    x: Axis
    y: Axis

    def across(self, cost: float) -> float:
        return LEFT + (RIGHT - LEFT) * self.x.at(cost) / 100

    def up(self, k: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * self.y.at(k) / 100

    def axes(self, x_name: str, y_name: str) -> Iterator[str]:
        for tick in self.x.ticks:
            at = self.across(tick)
            yield _line((at, BOTTOM), (at, BOTTOM + 5), INK)
            yield _text(at, BOTTOM + 21, self.x.text(tick))
        for tick in self.y.ticks:
            at = self.up(tick)
            yield _line((LEFT, at), (RIGHT, at), FAINT)
            yield _text(LEFT - 8, at + 5, self.y.text(tick), anchor="end")
        yield _line((LEFT, BOTTOM), (RIGHT, BOTTOM), INK)
        yield _line((LEFT, self.up(1)), (RIGHT, self.up(1)), INK, width=1.5, dashes="7 4")
        yield _text(RIGHT + 8, self.up(1) + 5, "k = 1: plain dense steps", size=13, anchor="start")
        yield _text((LEFT + RIGHT) / 2, BOTTOM + 48, x_name)
        yield _text(20, (TOP + BOTTOM) / 2, y_name, turned=True)

    def shaded(self, fewest: int, most: int) -> Iterator[str]:
        """Where the dense curve has ended: below the one and above the other of these numbers of steps, over cost."""
        costs = [self.x.low + (self.x.high - self.x.low) * k / 60 for k in range(61)]
        for steps, edge, at, said in ((fewest, BOTTOM, BOTTOM - 10, "worse"), (most, TOP, TOP + 16, "better")):
            curve = [(self.across(cost), self.up(steps / cost)) for cost in costs if cost > 0]
            outline = [(curve[0][0], edge), *curve, (curve[-1][0], edge)]
            yield f'<polygon points="{_points(outline)}" fill="#f0f0f0"/>'
            said += f" than {steps} dense steps"
            yield _text(RIGHT - 8, at, said, size=12, anchor="end", colour="#666666")

    def line(self, rows: Sequence[Mapping[str, Any]], colour: str) -> Iterator[str]:
        if len(rows) > 1:
            ordered = sorted(rows, key=lambda row: row["token_steps"])
            places = [(self.across(row["token_steps"]), self.up(row["k"]["value"])) for row in ordered]
            yield f'<polyline points="{_points(places)}" fill="none" stroke="{colour}" stroke-width="2"/>'

    def point(self, row: Mapping[str, Any]) -> Iterator[str]:
        mark, at = MARKS[row["policy"]], self.across(row["token_steps"])
        yield _line((at, self.up(row["k"]["low"])), (at, self.up(row["k"]["high"])), mark.colour, width=1.2)
        label = f"{row['case']}: cost {row['token_steps']:.4g}, k {row['k']['value']:.2f}"
        yield _shape(mark, at, self.up(row["k"]["value"]), label)


def _shape(mark: Mark, x: float, y: float, label: str = "") -> str:
    """A mark, a filled one with a rim in the paper's colour; `label` is what a pointer over it shows."""
    fill, rim = (mark.colour, PAPER) if mark.filled else ("none", mark.colour)
    style = f'fill="{fill}" stroke="{rim}" stroke-width="{1 if mark.filled else 2}"'
    title = f"<title>{escape(label)}</title>" if label else ""
    if mark.corners:
        corners = _points([(x + RADIUS * across, y + RADIUS * down) for across, down in mark.corners])
        return f'<polygon points="{corners}" {style}>{title}</polygon>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" {style}>{title}</circle>'


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _line(
    start: tuple[float, float], end: tuple[float, float], colour: str, width: float = 1.0, dashes: str = ""
) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}"{dashed}/>'
    )


def _text(
    x: float, y: float, text: str, *, size: int = 14, anchor: str = "middle", turned: bool = False, colour: str = INK
) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{turn}>'
        f"{escape(text)}</text>"
    )
