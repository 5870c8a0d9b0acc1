"""The errors a user can meet. Each knows the exit code the command line ends with.

A message is one sentence or two: what was given, what is allowed, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AccelAesError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1


class InputError(AccelAesError, ValueError):
    """Something the caller gave can't be right: an option, a checkpoint, a folder, a prompt."""

    exit_code = 2


class TooFewStepsError(InputError):
    """A run of fewer steps than a policy's plan needs."""


class BundleError(InputError):
    """A bundle that is not whole, not of this version or not for this machine."""


class MissingConfigError(BundleError, AttributeError):
    """A bundle's record of its transformer lacks a field that a pipeline reads."""


class OtherDeviceError(BundleError):
    """An engine that was built for another GPU than this machine's."""


class BuildError(AccelAesError):
    """A build that was asked for correctly and failed on the way."""

    exit_code = 3


class WriteError(AccelAesError):
    """A file of the user's that can't be written for want of space."""

    exit_code = 3


class MissingComponentError(AccelAesError):
    """An optional package, plugin, driver or device that this request needs and that isn't there."""

    exit_code = 4


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """ " Did you mean x?", or nothing where nothing allowed is near."""
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says first, without the full stop; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def shortened(value: object, most: int = 60) -> str:
    """A value as text that fits into a sentence: what was damaged may be of any length."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
