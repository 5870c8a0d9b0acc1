"""Drift's plans: tuned ones by budget, and the rule that makes one for any number of steps, budget and buckets.

Tuned on the shipped checkpoint, on prompts that no reported figure uses (docs/quality.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from accelaes_export.checks import is_number
from accelaes_export.errors import InputError
from accelaes_export.policies.coefficients import Coefficients
from accelaes_export.policies.plan import bucket_letter
from accelaes_export.policies.plan_quality import PlanQuality
from accelaes_export.policies.schedule import MOST_STEPS

SHARE = 12 / 28
"""Of a run's steps: the budget where none is given."""

SPARSE = 0.5
"""n/N of sparse steps: the bundle's nearest bucket is taken."""

COARSE = 24
"""Schedules of fewer steps begin with four dense ones instead of three: their early steps are what breaks pictures."""

FEWEST = 10
"""T of the shortest tuned plan. In runs of fewer steps the last one is worth computing."""


FEW_STEPS = 8
"""Models made for at most so many steps are distilled to them: no budget gives them more."""


@dataclass(frozen=True)
class DriftSchedule:
    """What drift does for one step budget: a plan, and how far it extrapolates.

    Attributes:
        symbols: one a step; letters stand for buckets: of the model that brings the schedule, or in TUNED a, b and c
            for n/N = .25, .5 and .75.
        theta, trend, cache_reach: as `Drift` has them.
        coefficients: learned ones for this plan, in place of θ, trend and calibration.
        quality: what was measured of it on the checkpoint that it stands beside; None: nothing was.

    Raises:
        InputError: for fewer than two symbols, a number outside its range or coefficients of another plan.
    """

    symbols: str
    theta: float
    trend: float
    cache_reach: float
    coefficients: Coefficients | None = None
    quality: PlanQuality | None = None

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # manifests and recipes hold schedules

    def __post_init__(self) -> None:
        if len(self.symbols) < 2:
            raise InputError(f"symbols is {self.symbols!r}; a plan has at least two steps: give one symbol a step.")
        for name in ("theta", "trend"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)!r}; give a number from 0 to 1.")
        if not 0 <= self.cache_reach < math.inf:
            raise InputError(f"cache_reach is {self.cache_reach!r}; give a number of gaps of at least 0.")
        if self.coefficients is not None:
            self.coefficients.require_for(self.symbols)


TUNED: dict[float, DriftSchedule] = {
    6: DriftSchedule("DDDD.b.bD.", theta=0.3, trend=1.0, cache_reach=0.5),
    8: DriftSchedule("DDDD.bb.D.bbD.", theta=0.3, trend=1.0, cache_reach=0.5),
    10: DriftSchedule("DDDbb.b..D.b.b.D.bDD.", theta=0.2, trend=1.0, cache_reach=0.3),
    12: DriftSchedule("DDD.b.b.D..bb.D.b.b.D.b.bDD.", theta=0.2, trend=0.8, cache_reach=0.5),
    14: DriftSchedule("DDD.b.b.D.b.b.D.b.b.D.b.b.D.b.bDD.", theta=0.2, trend=0.8, cache_reach=0.5),
    16: DriftSchedule("DDD.bb.D..bb.D.bb.D.bb.D.b.bD.b.bDD.", theta=0.2, trend=0.8, cache_reach=0.5),
}
"""By budget, ascending."""

_LETTERS = {"a": 0.25, "b": 0.5, "c": 0.75}


def require_budget(budget: object, listed: Iterable[float]) -> None:
    """InputError, which names the budgets that plans are `listed` for, unless it is None or at least a dense step."""
    if budget is None or (is_number(budget) and 1 <= budget <= MOST_STEPS):
        return
    known = [f"{one:g}" for one in listed]
    such_as = f"; there are plans for {', '.join(known)}" if known else ""
    raise InputError(f"budget is {budget!r}; give a number from 1 to {MOST_STEPS}{such_as}.")


def listed_budgets(steps: int, plans: Mapping[float, DriftSchedule]) -> tuple[float, ...]:
    """The budgets there are plans for on a model of T = `steps`, ascending: its own, and TUNED unless T is small."""
    return tuple(sorted({*plans, *(TUNED if steps > FEW_STEPS else ())}))


def tuned_options(budget: float | None) -> DriftSchedule:
    """The entry of TUNED nearest to `budget`; of two as near the cheaper one. None: the one for SHARE of 28 steps."""
    wanted = 28 * SHARE if budget is None else budget
    return TUNED[min(TUNED, key=lambda known: abs(known - wanted))]


def tuned_steps(budget: float) -> int:
    """T of the tuned plan for `budget`, or between those of its neighbours; beyond them in proportion to the last."""
    known = sorted(TUNED)
    nearest = min(max(budget, known[0]), known[-1])
    low = max(one for one in known if one <= nearest)
    high = min(one for one in known if one >= nearest)
    share = (nearest - low) / (high - low) if high > low else 0.0
    steps = (1 - share) * len(TUNED[low].symbols) + share * len(TUNED[high].symbols)
    return max(2, math.ceil(budget), math.floor(steps * budget / nearest + 0.5))


def drift_plan(steps: int, budget: float, buckets: Sequence[float]) -> str:
    """The symbols of a plan of T = `steps` steps that costs at most `budget` dense steps (but at least two).

    The tuned one where it has as many steps and the bundle its buckets. Otherwise what the tuned ones have in common:
    up to four dense steps, then steps that are computed and skipped by turns, two sparse ones to a dense one, and "D."
    or "DD." at the end: flow-matching Euler's last step begins where next to no noise is left, so computing it is
    waste.

    Args:
        buckets: the bundle's fractions n/N below 1, ascending; with none, steps are dense or skipped.
    """
    tuned = TUNED[budget].symbols if budget in TUNED else ""
    letters = {_LETTERS[symbol]: symbol for symbol in tuned if symbol in _LETTERS}
    if len(tuned) == steps and all(any(abs(own - n) < 1e-6 for own in buckets) for n in letters):
        return tuned.translate({ord(symbol): bucket_letter(n, buckets) for n, symbol in letters.items()})
    coarse = steps < COARSE
    beginning = min(4 if coarse else 3, steps, max(2, math.floor(0.8 * budget)))
    rest, left = steps - beginning, max(budget - beginning, 0.0)
    ending, room = ("D.", 4) if coarse else ("DD.", 8)
    if steps < FEWEST or rest < room or not 2 * ending.count("D") <= left < rest - 1:
        ending = ""
    rest, left = rest - len(ending), left - ending.count("D")
    dense, sparse, letter = _counts(rest, left, buckets)
    computed = dense + sparse
    symbols, k = ["D"] * beginning, 0
    for i in range(rest):
        if (i + 1) * computed // rest == i * computed // rest:
            symbols.append(".")
            continue
        # Dense ones in the middle of as many equal parts.
        before, after = ((2 * at * dense + computed) // (2 * computed) for at in (k, k + 1))
        symbols.append("D" if before < after else letter)
        k += 1
    return "".join(symbols) + ending


def _counts(rest: int, left: float, buckets: Sequence[float]) -> tuple[int, int, str]:
    """How many of `rest` steps are dense and sparse, for a cost of at most `left`, and the sparse ones' letter.

    Two sparse steps to a dense one, and more dense ones where that leaves money over.
    """
    if left >= rest or not buckets:
        return min(rest, math.floor(left)), 0, ""
    fraction = min(buckets, key=lambda bucket: abs(bucket - SPARSE))
    dense = math.floor(left / (1 + 2 * fraction))
    if dense + (left - dense) / fraction > rest:  # every step computed: how many must be sparse to afford that
        dense = math.floor((left - fraction * rest) / (1 - fraction) + 1e-9)
    sparse = min(rest - dense, math.floor((left - dense) / fraction + 1e-9))
    return dense, sparse, bucket_letter(fraction, buckets)
