"""The sweep over tiles, and the two tables of the plugin that it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from accelaes_export.plugins.sparse_query_attention.measured import TABLE as MEASURED
from accelaes_export.plugins.sparse_query_attention.tiles import TABLE as TILES
from accelaes_export.plugins.sparse_query_attention.tiles import Tile, choice
from benchmarks.gpu.attention_cases import Shape, error, kernel, microseconds, reference

KEPT = 3  # candidates in the table
ALLOWED = {"fp16": 2e-3, "bf16": 1.6e-2}
"""Error of the largest value that rounding explains."""


def sweep_tiles(architecture: str, head_dim: int) -> list[Tile]:
    """The table's candidates, and every tile near them; descriptors from sm_90 on."""
    found = dict.fromkeys(choice(architecture, head_dim).candidates)
    for queries in (64, 128):
        for keys in (32, 64, 128):
            for warps in (4, 8):
                for stages in (2, 3, 4):
                    for descriptors in (False, True) if int(architecture[2:]) >= 90 else (False,):
                        found[Tile(queries, keys, warps, stages, descriptors)] = None
    return list(found)


def tune(
    shapes: Sequence[Shape],
    tiles: Sequence[Tile],
    device: torch.device,
    say: Callable[[str], None],
    out_of_time: Callable[[], bool] = lambda: False,
) -> list[tuple[float, Tile]]:
    """Microseconds over all `shapes` for every tile that fits the GPU and computes the right thing, fastest first.

    The first of `tiles` are the table's own; once it is `out_of_time`, those that were tried have to do.
    """
    tensors = {shape: shape.tensors(device) for shape in shapes}
    wanted = {shape: reference(tensors[shape]) for shape in shapes}
    found = []
    for k, tile in enumerate(tiles):
        if k and out_of_time():
            say(f"  {len(tiles) - k} tiles more weren't tried: the time was up")
            break
        try:
            errors = [error(kernel(tensors[shape], tile)(), wanted[shape]) for shape in shapes]
        except Exception as problem:  # too much shared memory, or a variant the compiler refuses
            say(f"  {tile}: {type(problem).__name__}")
            continue
        # Not written as a comparison with max(): NaN compares as False.
        if not all(value <= ALLOWED[shape.dtype] for value, shape in zip(errors, shapes, strict=True)):
            say(f"  {tile}: wrong by {max(errors):.2g}")
            continue
        spent = sum(microseconds(kernel(tensors[shape], tile), device) for shape in shapes)
        say(f"  {tile}: {spent:.0f} us")
        found.append((spent, tile))
    return sorted(found)


def write_tiles(
    folder: Path, architecture: str, head_dim: int, ranked: Sequence[tuple[float, Tile]], origin: str
) -> None:
    """Put the fastest tiles into the row of `tiles.json` that `head_dim` falls into."""
    path = folder / TILES
    data = json.loads(path.read_text(encoding="utf-8"))
    entry = data["architectures"][architecture]
    row = next(row for row in entry["rows"] if head_dim <= row["head_dim_up_to"])
    names = [str(tile) for _, tile in ranked[:KEPT]]
    row |= {"best": names[0], "candidates": names}
    entry["origin"] = origin
    path.write_text(tiles_text(data), encoding="utf-8")


def write_measurements(folder: Path, measured: Sequence[dict[str, Any]]) -> None:
    """Put measurements into `measured.json`, in place of those of the same GPU, dtype, head size and shape."""
    path = folder / MEASURED
    data = json.loads(path.read_text(encoding="utf-8"))

    def key(entry: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(entry[name] for name in ("gpu", "dtype", "head_dim", "tokens", "focus", "text"))

    fresh = {key(entry) for entry in measured}
    data["entries"] = [entry for entry in data["entries"] if key(entry) not in fresh] + list(measured)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def tiles_text(data: dict[str, Any]) -> str:
    """`tiles.json` with a line for every row, as a person reads it."""
    blocks = []
    for architecture, entry in data["architectures"].items():
        rows = ",\n".join(f"    {json.dumps(row)}" for row in entry["rows"])
        head = f'  "{architecture}": {{\n   "origin": {json.dumps(entry["origin"])},\n'
        blocks.append(f'{head}   "shared_bytes": {entry["shared_bytes"]},\n   "rows": [\n{rows}\n   ]\n  }}')
    return '{\n "architectures": {\n' + ",\n".join(blocks) + "\n }\n}\n"
