"""Numbers as text: significant digits, the unit a time is read in, medians with their spread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from accelaes_export.measure.profiling.report import Spread
from accelaes_export.measure.quality.report import Interval


def significant(value: float, digits: int = 3) -> str:
    """`value` with so many significant digits: 0.0123, 4.56, 789, 12346; with an exponent below a millionth."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "–")
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    decimals = max(0, digits - 1 - magnitude)
    text = f"{abs(value):.{digits - 1}e}" if magnitude < -6 else f"{abs(value):.{decimals}f}"
    return f"−{text}" if value < 0 else text


def time_unit(seconds: float) -> tuple[float, str]:
    """What seconds are multiplied with, and the unit they are then in, where times are as long as `seconds`."""
    if seconds >= 10:
        return 1.0, "s"
    return (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")


def milliseconds(spread: Spread) -> str:
    """A time: the median, in brackets the 10th to 90th percentile."""
    median, low, high = (significant(1e3 * seconds, 4) for seconds in (spread.median, spread.p10, spread.p90))
    return f"{median} ({low}–{high})"


def ratio(spread: Spread | None) -> str:
    """A ratio the same way; nothing where there is none."""
    return "" if spread is None else f"{spread.median:.2f} ({spread.p10:.2f}–{spread.p90:.2f})"


def share(value: float) -> str:
    """A part of a whole, in percent."""
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def plain(value: Any) -> str:
    """A setting or fact as a person would write it: lists with commas, mappings as name value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(entry)}" for name, entry in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(entry) for entry in value) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def machine_facts(machine: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What a machine's figures depend on most, as (name, value)."""
    facts = {"GPU": machine["gpu"].get("name")} if "gpu" in machine else {}
    facts |= {name: machine[name] for name in ("cpu", "cores", "threads", "cpus", "pinned") if name in machine}
    if "memory_bytes" in machine:
        facts["memory"] = f"{machine['memory_bytes'] / 1e9:.1f} GB"
    facts |= {name: machine[name] for name in ("system", "versions") if name in machine}
    return list(facts.items())


def interval(value: Interval | None, digits: int = 3) -> str:
    """A figure with its confidence interval in brackets, where it has one."""
    if value is None:
        return ""
    if value.low is None or value.high is None:
        return significant(value.value, digits)
    middle, low, high = (significant(number, digits) for number in (value.value, value.low, value.high))
    return f"{middle} ({low} to {high})"
