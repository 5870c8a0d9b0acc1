"""What counts as a number where people give numbers, and what they gave twice."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeGuard

from accelaes_export.errors import InputError


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is an int or float, which True and False aren't meant to be."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether it is a number and neither infinite nor NaN."""
    return is_number(value) and math.isfinite(value)


def require_once(what: str, values: Iterable[object]) -> None:
    """InputError for a value that is there twice: "Seed 1 is given twice"."""
    seen = set()
    for value in values:
        if value in seen:
            raise InputError(f"{what} {value} is given twice; give it once.")
        seen.add(value)
