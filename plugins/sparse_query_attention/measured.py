"""Where the kernel was measured faster than the best library with its concatenation: `--attention auto` goes by it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

TABLE = "measured.json"
NEAR = 2.0
"""Measurements speak for pictures of half to twice as many tokens."""


@dataclass(frozen=True)
class Measurement:
    """One shape on one GPU, as benchmarks/gpu/attention.py writes it.

    Attributes:
        architecture, gpu: "sm90", "NVIDIA H200".
        dtype, head_dim: of the kernel's variant.
        tokens, focus, text: N, n and M of the step.
        tile: the kernel's tile.
        kernel_us, library_us: medians, in microseconds; the library's with its concatenation.
        library: the fastest one.
        versions: "torch 2.11.0, triton 3.6.0".
    """

    architecture: str
    gpu: str
    dtype: str
    head_dim: int
    tokens: int
    focus: int
    text: int
    tile: str
    kernel_us: float
    library_us: float
    library: str
    versions: str


@cache
def measurements() -> tuple[Measurement, ...]:
    """The installed table."""
    return parse(json.loads(resources.files(__package__).joinpath(TABLE).read_text(encoding="utf-8")))


def parse(data: Mapping[str, Any]) -> tuple[Measurement, ...]:
    """A table's entries; ValueError for one with other fields than a measurement's."""
    names = {field.name for field in fields(Measurement)}
    for entry in data["entries"]:
        if set(entry) != names:
            raise ValueError(
                f"A measurement has the fields {', '.join(sorted(names))}, not {', '.join(sorted(entry))}."
            )
    return tuple(Measurement(**entry) for entry in data["entries"])


def faster(
    architecture: str,
    dtype: str,
    head_dim: int,
    tokens: int,
    buckets: Sequence[int],
    table: Sequence[Measurement] | None = None,
) -> bool:
    """Whether the kernel was measured faster over all of an engine's buckets together.

    Every bucket goes by the measurement nearest to it in size and in n/N. False where one has none.

    Args:
        tokens: N.
        buckets: every n.
        table: measurements; the installed ones if None.
    """
    table = measurements() if table is None else table
    known = [
        entry
        for entry in table
        if (entry.architecture, entry.dtype, entry.head_dim) == (architecture, dtype, head_dim)
        and 1 / NEAR <= entry.tokens / tokens <= NEAR
    ]
    if not known or not buckets:
        return False

    def distance(entry: Measurement, n: int) -> float:
        return abs(math.log(entry.tokens / tokens)) + abs(entry.focus / entry.tokens - n / tokens)

    nearest = [min(known, key=lambda entry, n=n: distance(entry, n)) for n in buckets]  # type: ignore[misc]
    return sum(entry.kernel_us for entry in nearest) < sum(entry.library_us for entry in nearest)
