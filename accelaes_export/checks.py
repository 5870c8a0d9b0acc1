"""What counts as a number where people give numbers."""

from __future__ import annotations

import math
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is an int or float, which True and False aren't meant to be."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether it is a number and neither infinite nor NaN."""
    return is_number(value) and math.isfinite(value)
