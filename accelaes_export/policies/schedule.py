"""Which steps are computed at all: a warm-up, then one step in `interval`, and the last."""

from __future__ import annotations

from accelaes_export.errors import InputError, TooFewStepsError

MOST_STEPS = 1000
"""The noise levels these models were trained at."""


def computed_steps(steps: int, first_skip: int, interval: int) -> list[bool]:
    """True for every computed one of T = `steps` steps.

    Steps before `first_skip` are computed; from there every group of `interval` steps ends with a computed one.
    The last step is always computed, because its error would go into the picture uncorrected.
    """
    return [i < first_skip or (i - first_skip) % interval == interval - 1 or i == steps - 1 for i in range(steps)]


def predictions_needed(order: int) -> int:
    """Computed predictions that must exist before a step may be skipped: one to hold it, two to extrapolate.

    Order 2 starts with two as well: until a token has its third prediction it is extrapolated linearly.
    """
    return 1 if order == 0 else 2


def require_whole(option: str, value: object, at_least: int) -> None:
    """InputError unless `value` is a whole number of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InputError(f"{option} is {value!r}; allowed are whole numbers from {at_least} up: give one of them.")


def require_steps(steps: object, at_least: int = 2) -> None:
    """InputError unless `steps` is a whole number; TooFewStepsError unless it is at least `at_least`."""
    kind = TooFewStepsError if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0 else InputError
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < at_least:
        raise kind(
            f"The number of steps is {steps!r}; this plan needs a whole number of at least {at_least}: ask for more "
            "steps."
        )
