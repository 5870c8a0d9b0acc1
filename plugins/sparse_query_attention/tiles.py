"""Tile configurations: how one program of the kernel is cut, as data for every architecture.

A tile is written `128x64-w4-s3`: 128 query rows and 64 keys at a time, 4 warps, 3 stages of the load pipeline; `-tma`
reads keys and values through tensor descriptors. Its `code` is the same in one positive int32, which is what TensorRT
knows as a tactic and what an engine stores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

TABLE = "tiles.json"
ARCHITECTURES = ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120")
DTYPES = ("fp16", "bf16")
HEAD_DIMS = range(32, 257, 8)
"""Head sizes the kernel takes: rows start at multiples of 16 bytes, and two products of 256 columns fit a program."""

_WRITTEN = re.compile(r"(\d+)x(\d+)-w(\d+)-s(\d+)(-tma)?")


@dataclass(frozen=True, order=True)
class Tile:
    """One way to cut the work.

    Attributes:
        queries, keys: rows of a tile; powers of two from 16 to 256.
        warps: 1, 2, 4, 8 or 16.
        stages: depth of the load pipeline, 1 to 7.
        descriptors: tensor descriptors (TMA, sm_90 and later).
    """

    queries: int
    keys: int
    warps: int
    stages: int
    descriptors: bool = False

    def __post_init__(self) -> None:
        sizes = (16, 32, 64, 128, 256)
        if self.queries not in sizes or self.keys not in sizes or self.warps not in (1, 2, 4, 8, 16):
            raise ValueError(f"A tile has 16 to 256 rows and 1 to 16 warps, all powers of two, not {self}.")
        if not 1 <= self.stages <= 7:
            raise ValueError(f"A tile has 1 to 7 stages, not {self.stages}.")

    def __str__(self) -> str:
        return f"{self.queries}x{self.keys}-w{self.warps}-s{self.stages}{'-tma' * self.descriptors}"

    @classmethod
    def parse(cls, text: str) -> Tile:
        """`128x64-w4-s3-tma`; ValueError for anything else."""
        found = _WRITTEN.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no tile; write one like 128x64-w4-s3 or 128x128-w8-s2-tma.")
        queries, keys, warps, stages = (int(part) for part in found.groups()[:4])
        return cls(queries, keys, warps, stages, bool(found[5]))

    @property
    def code(self) -> int:
        """All of it in one int32 > 0: log2 of rows, keys and warps, stages and the flag, four bits each."""
        logarithms = [size.bit_length() - 1 for size in (self.queries, self.keys, self.warps)]
        code = 0
        for part in (*logarithms, self.stages, int(self.descriptors)):
            code = code << 4 | part
        return code

    @classmethod
    def from_code(cls, code: int) -> Tile:
        """The tile of a `code`; ValueError for a number that is none."""
        parts = [code >> shift & 15 for shift in (16, 12, 8, 4, 0)]
        if code >> 20 or code < 1 or parts[4] > 1:
            raise ValueError(f"{code} is no tile's code.")
        return cls(1 << parts[0], 1 << parts[1], 1 << parts[2], parts[3], bool(parts[4]))


@dataclass(frozen=True)
class TileChoice:
    """What the table says for one architecture and head size: the tile to take, and all that are worth timing."""

    best: Tile
    candidates: tuple[Tile, ...]
    origin: str


@cache
def table() -> Mapping[str, Any]:
    """The installed table, as its JSON says."""
    loaded: Mapping[str, Any] = json.loads(resources.files(__package__).joinpath(TABLE).read_text(encoding="utf-8"))
    return loaded


def choice(architecture: str, head_dim: int, data: Mapping[str, Any] | None = None) -> TileChoice:
    """The table's row for a head size: the first whose `head_dim_up_to` reaches it.

    Raises ValueError for an architecture or head size that isn't in it.
    """
    rows = (table() if data is None else data)["architectures"]
    if architecture not in rows:
        raise ValueError(f"The kernel has no tiles for {architecture}; there are {', '.join(rows)}.")
    entry = rows[architecture]
    for row in entry["rows"]:
        if head_dim <= row["head_dim_up_to"]:
            candidates = tuple(Tile.parse(text) for text in row["candidates"])
            return TileChoice(Tile.parse(row["best"]), candidates, entry["origin"])
    raise ValueError(f"The kernel takes head sizes up to {entry['rows'][-1]['head_dim_up_to']}, not {head_dim}.")


def binary_architecture(major: int, minor: int) -> str | None:
    """The architecture whose cubins run on a GPU of this compute capability, or None.

    Binary code runs on the same major and the same or a later minor number. From sm_90 on Triton compiles for
    features of the one architecture, so there only the same number will do.
    """
    for name in reversed(ARCHITECTURES):
        own = divmod(int(name[2:]), 10)
        if own == (major, minor) or (major < 9 and own[0] == major and own[1] <= minor):
            return name
    return None


def nearest_architecture(major: int, minor: int) -> str | None:
    """The last architecture not above this compute capability, whose tiles fit it when compiled for it; or None."""
    return next((name for name in reversed(ARCHITECTURES) if divmod(int(name[2:]), 10) <= (major, minor)), None)


def shared_bytes(architecture: str) -> int:
    """Shared memory one program may have."""
    return int(table()["architectures"][architecture]["shared_bytes"])


def parts(head_dim: int) -> tuple[int, int]:
    """(WIDTH, REST): the powers of two that a head is worked in, REST 0 where one part is no dearer than two."""
    width = 1 << (head_dim.bit_length() - 1)
    if width == head_dim:
        return width, 0
    rest = max(16, 1 << (head_dim - width - 1).bit_length())
    return (width, rest) if width + rest < 2 * width else (2 * width, 0)
