"""Setting a peer's one knob so that it computes as often as a plan does."""

from __future__ import annotations

import math
from collections.abc import Callable


def matching_knob(
    computes: Callable[[float], int],
    wanted: int,
    low: float,
    high: float,
    *,
    guess: float | None = None,
    tries: int = 12,
) -> tuple[float, int]:
    """The knob between `low` and `high` whose number of full computes is nearest to `wanted`, and that number.

    Args:
        computes: full computes of a run with this knob; never more with a larger knob.
        low, high: the range; it is halved in the logarithm where it spans more than a factor of a hundred.
        guess: a knob to try first.
        tries: runs made at most.
    """
    first = low if low == high else guess
    if first is not None:
        found = computes(first)
        if found == wanted or low == high:
            return first, found
    geometric = low > 0 and high / low > 100
    best = (high, computes(high))
    if best[1] >= wanted:  # even the largest computes too often, or just right
        return best
    for _ in range(tries - 1):
        middle = math.sqrt(low * high) if geometric else (low + high) / 2
        found = computes(middle)
        if abs(found - wanted) < abs(best[1] - wanted):
            best = (middle, found)
        if found == wanted:
            break
        low, high = (middle, high) if found > wanted else (low, middle)
    return best
