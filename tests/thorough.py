"""Parameters of which a few are tried by every test run, and the others by a thorough one (make test-thorough)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def thorough_but(always: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """`values` for parametrize; those that aren't in `always` are marked thorough."""
    values = list(values)
    missing = [value for value in always if value not in values]
    assert not missing, f"{missing} aren't among the parameters {values}"
    return [
        value
        if value in always
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.thorough)
        for value in values
    ]
