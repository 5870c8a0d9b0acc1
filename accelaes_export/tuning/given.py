"""The prompts that something is learned on: how many there must be, and which are only measured on."""

from __future__ import annotations

from accelaes_export.errors import InputError

_FEWEST = 4


def require_prompts(count: int, held_out: float) -> None:
    """InputError for too few, or a share to be held out that isn't one."""
    if not 0 < held_out < 1:
        raise InputError(f"The share held out is {held_out!r}; give a number between 0 and 1, such as 0.25.")
    if count < _FEWEST:
        raise InputError(f"{count} prompts were given, and tuning needs {_FEWEST} or more; some dozens are better.")


def learned_on(count: int, held_out: float) -> int:
    """How many of them are learned on, the first: at least one, and at least one is held out."""
    return count - max(1, min(count - 1, round(held_out * count)))
