"""What a launch of a compiled kernel is: its variant's parameters, its grid, its scratch memory. Plain numbers.

The C++ plugin does the same in cpp/launch.cpp. Tests compare the two, and this file with the kernel's own arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from accelaes_export.plugins.sparse_query_attention.tiles import Tile

Kind = Literal["pointer", "float", "int32", "int64"]

PARAMETERS: tuple[tuple[str, Kind], ...] = (
    *((name, "pointer") for name in ("q", "k", "v", "k_bg", "v_bg", "bias", "out")),
    ("scale", "float"),
    *((name, "int32") for name in ("queries", "keys", "background", "group")),
    *((f"{name}_{axis}", "int64") for name in ("q", "k", "v", "kb", "vb", "out") for axis in ("batch", "head")),
    ("bias_batch", "int64"),
    ("bias_row", "int64"),
    # Triton's own, behind the kernel's: memory for tensor descriptors, and for its profiler, which is never built in.
    ("scratch", "pointer"),
    ("profile", "pointer"),
)
"""A compiled kernel's parameters in order; strides of rows are constants in it."""

SMALLEST_TILE = 64  # query rows of the smallest tile in the table
LARGEST_SCRATCH = 1024  # bytes a program: eight tensor descriptors


@dataclass(frozen=True)
class Sizes:
    """The sizes of one call. `bias`: its shape [1 or B, 1, 1 or nq, nk + m], or None."""

    batch: int  # B
    heads: int  # H
    kv_heads: int  # Hkv
    queries: int  # nq
    keys: int  # nk
    background: int  # m
    head_dim: int  # hd
    bias: tuple[int, int, int, int] | None = None

    @classmethod
    def of(cls, shapes: Sequence[Iterable[int]]) -> Sizes:
        """From the shapes of q, k, v, k_bg, v_bg and, where there is one, the bias.

        Raises ValueError for shapes that don't fit together.
        """
        q, k, v, k_bg, v_bg, *added = (tuple(shape) for shape in shapes)
        B, H, nq, hd = q
        expected = [(B, k[1], k[2], hd)] * 2 + [(B, k[1], k_bg[2], hd)] * 2
        if [k, v, k_bg, v_bg] != expected or H % k[1]:
            raise ValueError(f"Queries {q} don't fit keys and values {k}, {v}, {k_bg}, {v_bg}.")
        bias = None
        if added:
            rows, one, lines, columns = added[0]
            if rows not in (1, B) or one != 1 or lines not in (1, nq) or columns != k[2] + k_bg[2]:
                raise ValueError(f"The bias is {added[0]}; it must be [1 or {B}, 1, 1 or {nq}, {k[2] + k_bg[2]}].")
            bias = (rows, one, lines, columns)
        return cls(B, H, k[1], nq, k[2], k_bg[2], hd, bias)


def grid(sizes: Sizes, tile: Tile) -> tuple[int, int, int]:
    """Programs: tiles of queries, heads, batch rows."""
    return -(-sizes.queries // tile.queries), sizes.heads, sizes.batch


def scratch_bytes(batch: int, heads: int, queries: int) -> int:
    """Scratch memory that is enough for every tile of the table; TensorRT is asked for it before a tile is known."""
    return -(-queries // SMALLEST_TILE) * heads * batch * LARGEST_SCRATCH


def parameters(sizes: Sizes, scale: float, pointers: Sequence[int], scratch: int) -> list[int | float]:
    """The values of `PARAMETERS` for contiguous tensors.

    Args:
        pointers: addresses of q, k, v, k_bg, v_bg, bias (0 for none) and out.
        scratch: address of the scratch memory, or 0.
    """
    hd = sizes.head_dim
    queries = (sizes.heads * sizes.queries * hd, sizes.queries * hd)
    keys = (sizes.kv_heads * sizes.keys * hd, sizes.keys * hd)
    background = (sizes.kv_heads * sizes.background * hd, sizes.background * hd)
    bias_batch = bias_row = 0
    if sizes.bias is not None:
        rows, _, lines, columns = sizes.bias
        bias_batch = 0 if rows == 1 else lines * columns
        bias_row = 0 if lines == 1 else columns
    return [
        *pointers,
        scale,
        *(sizes.queries, sizes.keys, sizes.background, sizes.heads // sizes.kv_heads),
        *queries,
        *keys,
        *keys,
        *background,
        *background,
        *queries,
        *(bias_batch, bias_row),
        *(scratch, 0),
    ]
