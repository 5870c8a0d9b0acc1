"""Reading the options that are more than a number: resolutions, buckets, targets. Recipes, Python and the CLI share it.

Every function takes what a user may write, a string or a sequence, and returns the one form the library uses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from accelaes_export.checks import is_number, require_once
from accelaes_export.errors import InputError

_LARGEST_GUIDANCE = 1e4  # beyond, half precision overflows whatever is guided
_COMPILING = {
    "autotune": ("autotune", True),
    "freezing": ("freezing", True),
    "no-freezing": ("freezing", False),
    "per-bucket": ("per_bucket", True),
}


def parse_resolution(given: str | Sequence[int]) -> tuple[int, int]:
    """(height, width) in pixels from "HEIGHTxWIDTH", e.g. "1024x768" is 1024 high, or from two integers."""
    if isinstance(given, str):
        match = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", given)
        if match is None:
            raise InputError(f"Resolution {given!r} can't be read; write HEIGHTxWIDTH in pixels, e.g. 1024x1024.")
        pair: tuple[int, ...] = (int(match[1]), int(match[2]))
    else:
        pair = tuple(given) if isinstance(given, Iterable) else ()
    if len(pair) != 2 or any(isinstance(side, bool) or not isinstance(side, int) for side in pair):
        raise InputError(f"Resolution {given!r} can't be read; give two whole numbers, height and width in pixels.")
    if min(pair) < 1:
        raise InputError(
            f"Resolution {pair[0]}x{pair[1]} has a side below 1 pixel; write HEIGHTxWIDTH, e.g. 1024x1024."
        )
    return pair[0], pair[1]


def parse_buckets(given: str | Iterable[float | str]) -> tuple[float, ...]:
    """Bucket fractions n/N below 1, ascending, from "0.25,0.5,0.75" or numbers.

    1.0 means dense, which every bundle has: it is allowed and left out of the result. InputError for what
    isn't a number, for n/N <= 0 or > 1, and for duplicates.
    """
    if not isinstance(given, Iterable):
        raise InputError(f"Buckets {given!r} can't be read; give several fractions n/N, e.g. 0.25,0.5,0.75.")
    items = list(given.split(",") if isinstance(given, str) else given)
    fractions: list[float] = []
    for item in items:
        fraction = _fraction(item)
        if fraction in fractions:
            raise InputError(f"Bucket {fraction:g} is given twice; give every fraction n/N once.")
        fractions.append(fraction)
    return tuple(sorted(fraction for fraction in fractions if fraction < 1))


def _fraction(item: float | str) -> float:
    try:
        fraction = float(item)
    except (TypeError, ValueError):
        fraction = math.nan
    if math.isnan(fraction) or isinstance(item, bool):
        raise InputError(f"Bucket {item!r} is not a number; give fractions n/N, e.g. --buckets 0.25,0.5,0.75.")
    if fraction <= 0:
        raise InputError(f"Bucket {fraction:g} is not above 0; a bucket is a fraction n/N with 0 < n/N <= 1.")
    if fraction > 1:
        raise InputError(
            f"Bucket {fraction:g} is above 1; a bucket is a fraction n/N (skip ratio p means bucket 1 - p)."
        )
    return fraction


def parse_ranges(given: str | Iterable[str | Sequence[int]]) -> tuple[tuple[int, int], ...]:
    """(first, last) of ranges of blocks, ascending, from "0:12,12:24" or pairs of whole numbers; "none" is none."""
    if isinstance(given, str):
        items: list[Any] = [] if given.strip().lower() == "none" else given.split(",")
    else:
        items = list(given) if isinstance(given, Iterable) else [given]
    ranges = []
    for item in items:
        match = re.fullmatch(r"\s*(\d{1,4})\s*:\s*(\d{1,4})\s*", item) if isinstance(item, str) else None
        pair = (int(match[1]), int(match[2])) if match else item
        whole = isinstance(pair, Sequence) and len(pair) == 2 and all(type(end) is int for end in pair)
        if not whole or not 0 <= pair[0] < pair[1]:
            raise InputError(
                f"Block range {item!r} can't be read; write FIRST:LAST, LAST not included, e.g. 0:12,12:24."
            )
        ranges.append((pair[0], pair[1]))
    if len(set(ranges)) != len(ranges) or len(ranges) > 10:
        raise InputError(f"Block ranges {given!r} are more than 10 or have one twice; give every range once.")
    return tuple(sorted(ranges))


def parse_compiling(given: str | Mapping[str, Any] | object) -> object:
    """Flags of kernel generation from "autotune,per-bucket" as a mapping; anything else is returned as it is."""
    if not isinstance(given, str):
        return given
    flags: dict[str, bool] = {}
    for item in filter(None, (item.strip() for item in given.split(","))):
        if item not in _COMPILING:
            raise InputError(f"{item!r} is no flag of kernel generation; there are {', '.join(_COMPILING)}.")
        field, value = _COMPILING[item]
        if field in flags:
            raise InputError(f"The flags {given!r} say {field} twice; name each once.")
        flags[field] = value
    return flags


def parse_targets(given: str | Iterable[str]) -> tuple[str, ...]:
    """Names of targets from "sm86,sm120" or "cpu". Backends check theirs."""
    items = [item.strip().lower() for item in (given.split(",") if isinstance(given, str) else given)]
    for item in items:
        if re.fullmatch(r"[a-z][a-z0-9+_-]*", item) is None:
            raise InputError(f"Target {item!r} can't be read; name compute capabilities like sm86,sm120, or cpu.")
        if items.count(item) > 1:
            raise InputError(f"Target {item} is given twice; name every compute capability once.")
    return tuple(items)


def parse_counts(option: str, given: str, least: int = 1) -> tuple[int, ...]:
    """Whole numbers of at least `least` from "1,2,4"; `option` is named where one isn't."""
    items = [item.strip() for item in given.split(",")]
    for item in items:
        if not (re.fullmatch("[0-9]{1,9}", item) and int(item) >= least):
            raise InputError(f"{option} has {item!r}; give whole numbers from {least} up, such as 1,2,4.")
    return tuple(map(int, items))


def parse_budgets(given: str) -> tuple[float, ...]:
    """Step budgets from "8,12"; InputError for what is no number, is below 1, or given twice."""
    found: list[float] = []
    for item in (item.strip() for item in given.split(",")):
        try:
            budget = float(item)
        except ValueError:
            budget = math.nan
        if not 1 <= budget < math.inf:
            raise InputError(f"--budgets has {item!r}; give numbers of dense steps from 1 up, such as 8,12.")
        found.append(budget)
    require_once("Budget", found)
    return tuple(found)


def require_seed(seed: object) -> None:
    """InputError unless `seed` is one that every generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError("The seed is no whole number from 0 to 2^63 - 1; give one of them.")


def require_guidance(scale: object) -> None:
    """InputError unless `scale` is a number that a prediction can be multiplied with."""
    if not is_number(scale) or not abs(scale) < _LARGEST_GUIDANCE:
        raise InputError(f"The guidance scale is {scale!r}; give a number such as 4.5, below {_LARGEST_GUIDANCE:g}.")


def parse_policy_options(written: Sequence[str]) -> dict[str, Any]:
    """Policy options from NAME=VALUE, the value written as in a recipe: 0.3, true, none, [0.4, 0.7]."""
    import yaml

    options: dict[str, Any] = {}
    for text in written:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise InputError(f"Policy option {text!r} can't be read; write NAME=VALUE, such as theta=0.3.")
        if name in options:
            raise InputError(f"Policy option {name} is given twice; give it once.")
        try:
            options[name] = None if value.strip().lower() == "none" else yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date or number that can't be one
            raise InputError(f"Policy option {name} is {value!r}, which can't be read; write it as in YAML.") from None
    return options


def parse_policies(option: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """Labels of policies from "stepcache,drift:budget=12", where NAME:OPTION=VALUE:... gives options, as written.

    Commas inside brackets belong to a value. InputError, which names `option`, for an empty name or one given twice.
    """
    items = re.split(r",(?![^\[\{]*[\]\}])", given) if isinstance(given, str) else given
    labels = tuple(item.strip() for item in items)
    for k, label in enumerate(labels):
        if not label.partition(":")[0]:
            raise InputError(f"{option} is {given!r}, which has an empty name; give names with commas between them.")
        if label in labels[:k]:
            raise InputError(f"Policy {label} is given twice; give it once.")
    return labels


def parse_label(label: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a policy from NAME:OPTION=VALUE:..."""
    name, *options = re.split(r":(?![^\[\{]*[\]\}])", label)
    return name, parse_policy_options(options)


def parse_presets(given: object) -> object:
    """Labels of policies as `parse_policies` reads them, "none" being none; anything else is returned as it is."""
    if isinstance(given, str):
        return () if given.strip().lower() == "none" else parse_policies("presets", given)
    return (
        parse_policies("presets", given)
        if isinstance(given, (list, tuple)) and all(isinstance(label, str) for label in given)
        else given
    )


def parse_names(option: str, given: str) -> tuple[str, ...]:
    """Names from "dense,stepcache", in the order given; InputError for an empty one."""
    names = tuple(item.strip() for item in given.split(","))
    if not all(names):
        raise InputError(f"{option} is {given!r}, which has an empty name; give names with commas between them.")
    return names
