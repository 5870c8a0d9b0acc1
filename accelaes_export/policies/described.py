"""What a policy says of itself, for the command line: one line of what it does, and its options."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class OptionHelp:
    """One option of a policy: its name, and its default as it is written on a command line ('': it needs a value)."""

    name: str
    default: str


@dataclass(frozen=True)
class PolicyHelp:
    """A policy's name, one line of what it does, and its options in their order."""

    name: str
    summary: str
    options: tuple[OptionHelp, ...]


def described(kind: type[Any]) -> PolicyHelp:
    """The help of one policy, a dataclass; no summary where Python was told to leave docstrings out (-OO)."""
    options = tuple(OptionHelp(field.name, _written(field.default)) for field in fields(kind))
    return PolicyHelp(kind.name, (kind.__doc__ or "").partition("\n")[0], options)


def _written(default: Any) -> str:
    if default is MISSING:
        return ""
    if default is None or isinstance(default, bool):
        return str(default).lower()
    return str(list(default)) if isinstance(default, tuple) else str(default)
