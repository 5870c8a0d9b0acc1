"""What a policy's docstring says of it, for the command line: one line of what it does, and each option's meaning."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class OptionHelp:
    """One option of a policy: its name, its default as it is written on a command line, and what it means."""

    name: str
    default: str
    text: str


@dataclass(frozen=True)
class PolicyHelp:
    """A policy's name, one line of what it does, and its options in their order."""

    name: str
    summary: str
    options: tuple[OptionHelp, ...]


def described(kind: type[Any]) -> PolicyHelp:
    """The help of one policy, a dataclass; texts are empty where Python was told to leave docstrings out (-OO)."""
    doc = inspect.cleandoc(kind.__doc__ or "")
    texts = _attributes(doc)
    options = tuple(OptionHelp(f.name, _written(f.default), texts.get(f.name, "")) for f in fields(kind))
    return PolicyHelp(kind.name, doc.partition("\n")[0], options)


def _attributes(doc: str) -> dict[str, str]:
    """Name to text from a docstring's `Attributes`; several names may share one."""
    section = re.search(r"^Attributes:\n((?:(?: {4}.*)?\n?)*)", doc, re.MULTILINE)
    texts: dict[str, str] = {}
    entries = re.findall(r"^ {4}(\w[\w, ]*): ((?:.*)(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    for names, text in entries:
        texts |= dict.fromkeys(re.split(r",\s*", names), " ".join(text.split()))
    return texts


def _written(default: Any) -> str:
    if default is MISSING:
        return ""
    if default is None or isinstance(default, bool):
        return str(default).lower()
    return str(list(default)) if isinstance(default, tuple) else str(default)
