"""Damage to JSON: one to three places of a document deleted, swapped, doubled, or given what nobody would expect."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

Path = tuple[Any, ...]

_DEEP: Any = []
for _ in range(50):
    _DEEP = [_DEEP]

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 10**9, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, 1e-320),
    *("", "x", "0", "D", "\ud800", "\x00", "../x", "/etc/passwd", "x" * 5000, "😀", "sd3", "cuda", "fp16", "{}", "%s"),
    *([], {}, [0], [None], [[]], {"a": 1}, {"": None}, _DEEP),
)


def places(document: Any, path: Path = ()) -> list[Path]:
    """Every place in a document but its root."""
    if isinstance(document, dict):
        return [p for key, value in document.items() for p in ((*path, key), *places(value, (*path, key)))]
    if isinstance(document, list):
        return [p for k, value in enumerate(document) for p in ((*path, k), *places(value, (*path, k)))]
    return []


def mutated(document: Any, chance: random.Random) -> tuple[Any, list[Path]]:
    """A damaged copy, and where."""
    document, touched = copy.deepcopy(document), []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        everywhere = places(document)
        if not everywhere:
            break
        # A top-level entry first, so that long lists don't take all of the damage.
        top = chance.choice(list(dict.fromkeys(place[0] for place in everywhere)))
        place = chance.choice([place for place in everywhere if place[0] == top])
        owner = document
        for step in place[:-1]:
            owner = owner[step]
        chance.choice(_CHANGES)(owner, place[-1], chance)
        touched.append(place)
    return document, touched


def _replace(owner: Any, key: Any, chance: random.Random) -> None:
    owner[key] = copy.deepcopy(chance.choice(NASTY))


def _delete(owner: Any, key: Any, chance: random.Random) -> None:
    del owner[key]


def _nudge(owner: Any, key: Any, chance: random.Random) -> None:
    """A value of the same type: what a person might have meant."""
    value = owner[key]
    if isinstance(value, bool):
        owner[key] = not value
    elif isinstance(value, (int, float)):
        owner[key] = chance.choice((value + 1, value - 1, value * 2, -value, value / 2))
    elif isinstance(value, str):
        owner[key] = chance.choice((value.upper(), value + "_2", value[:-1], value[::-1]))
    elif isinstance(value, list):
        owner[key] = chance.choice((value[::-1], value[:-1], value * 2, value[1:]))
    elif isinstance(value, dict):
        owner[key] = dict(list(value.items())[:-1]) | ({"extra": 1} if chance.random() < 0.5 else {})
    else:
        owner[key] = 1


def _swap(owner: Any, key: Any, chance: random.Random) -> None:
    other = chance.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
    owner[key], owner[other] = owner[other], owner[key]


_CHANGES: tuple[Callable[[Any, Any, random.Random], None], ...] = (_replace, _replace, _delete, _nudge, _nudge, _swap)
