"""Compiled kernels: which ones there are, where they are kept, and the one file that carries them.

A *pack* is what the C++ library embeds and the Python plugin reads: a header, a table of fixed rows, the cubins. Little
endian; the same rows as `struct Row` in cpp/cubins.h.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

from accelaes_export.plugins.sparse_query_attention.errors import MissingError, PluginError
from accelaes_export.plugins.sparse_query_attention.tiles import (
    ARCHITECTURES,
    DTYPES,
    HEAD_DIMS,
    Tile,
    binary_architecture,
    choice,
)

COMMON_HEAD_DIMS = (64, 72, 128)
"""Of SD3 (64), Lumina, PixArt and DiT (72), FLUX, Qwen-Image and Wan (128)."""

PACK_FILE = "sparse_query_attention.cubins"
PACK_VARIABLE = "ACCELAES_CUBINS"
_MAGIC = b"AXCUBIN1"
_HEADER = struct.Struct("<8sII")  # magic, rows, bytes of a row
_ROW = struct.Struct("<8I2Q")  # architecture, dtype, head size, biased, tile, best, shared, scratch; offset, size
_ALIGNMENT = 64


@dataclass(frozen=True, order=True)
class Kernel:
    """One compiled variant of the kernel.

    Attributes:
        architecture: "sm86".
        dtype: "fp16" or "bf16".
        head_dim: hd.
        biased: whether it adds a bias.
        tile: how it is cut.
    """

    architecture: str
    dtype: str
    head_dim: int
    biased: bool
    tile: Tile

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"The kernel compiles for {', '.join(ARCHITECTURES)}, not for {self.architecture}; name one of them."
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"The kernel takes {' and '.join(DTYPES)}, not {self.dtype}.")
        if self.head_dim not in HEAD_DIMS:
            raise ValueError(f"The kernel takes head sizes from 32 to 256 in steps of 8, not {self.head_dim}.")

    def __str__(self) -> str:
        return f"{self.architecture}-{self.dtype}-hd{self.head_dim}{'-bias' * self.biased}-{self.tile}"

    @property
    def best(self) -> bool:
        """Whether this is the tile the table chooses."""
        return choice(self.architecture, self.head_dim).best == self.tile


@dataclass(frozen=True)
class Cubin:
    """A compiled kernel: its machine code, bytes of shared memory a program, bytes of scratch memory a program."""

    kernel: Kernel
    best: bool
    shared: int
    scratch: int
    image: bytes


def kernels(
    architectures: Sequence[str] = ARCHITECTURES,
    dtypes: Sequence[str] = DTYPES,
    head_dims: Sequence[int] = COMMON_HEAD_DIMS,
) -> tuple[Kernel, ...]:
    """Every variant worth having: all candidate tiles without a bias, the best one with it.

    Raises ValueError for an architecture, dtype or head size that the kernel doesn't take.
    """
    found = []
    for architecture in dict.fromkeys(architectures):
        for dtype in dict.fromkeys(dtypes):
            for head_dim in dict.fromkeys(head_dims):
                Kernel(architecture, dtype, head_dim, False, Tile(64, 64, 4, 2))  # a wrong name is refused as itself
                chosen = choice(architecture, head_dim)
                found += [Kernel(architecture, dtype, head_dim, False, tile) for tile in chosen.candidates]
                found.append(Kernel(architecture, dtype, head_dim, True, chosen.best))
    return tuple(found)


def source_hash() -> str:
    """Of everything a cubin follows from: the kernel's source, how it is compiled, and Triton's version.

    Raises MissingError where Triton isn't installed.
    """
    digest = hashlib.sha256(triton_version().encode())
    for name in ("kernel.py", "compiling.py", "tiles.py"):
        digest.update(resources.files(__package__).joinpath(name).read_bytes())
    return digest.hexdigest()


def triton_version() -> str:
    """The installed Triton's version; MissingError where there is none."""
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError as error:
        raise MissingError("The kernel is compiled by Triton, which isn't installed: pip install triton.") from error


def cache_folder() -> Path:
    """Where compiled kernels and the pack are kept: $XDG_CACHE_HOME/accelaes-export/plugin, or ~/.cache/…."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "accelaes-export" / "plugin"


def default_pack() -> Path:
    """The pack that `plugin build` writes and the Python plugin reads: $ACCELAES_CUBINS, or in the cache."""
    given = os.environ.get(PACK_VARIABLE)
    return Path(given) if given else cache_folder() / PACK_FILE


def require_kernels(pack: Path, capability: str, dtype: str, head_dims: Iterable[int]) -> None:
    """Raise MissingError where `pack` has no kernel for a GPU of `capability` ("sm86") and one of these head sizes."""
    architecture = binary_architecture(*divmod(int(capability.removeprefix("sm")), 10))
    there = {
        cubin.kernel.head_dim
        for cubin in read_pack(pack)
        if (cubin.kernel.architecture, cubin.kernel.dtype) == (architecture, dtype)
    }
    missing = sorted(set(head_dims) - there)
    if missing or not there:
        sizes = ",".join(map(str, missing or COMMON_HEAD_DIMS))
        raise MissingError(
            f"{pack} has no {dtype} attention kernel for {capability} and head size {sizes}; run accelaes-export "
            f"plugin build --arch {architecture or capability} --head-dim {sizes}."
        )


def write_pack(path: Path, cubins: Iterable[Cubin]) -> None:
    """Write `path` at once or not at all."""
    entries = sorted(cubins, key=lambda cubin: cubin.kernel)
    offset = _HEADER.size + len(entries) * _ROW.size
    rows, images = [], []
    for entry in entries:
        padding = -offset % _ALIGNMENT
        offset += padding
        kernel = entry.kernel
        rows.append(
            _ROW.pack(
                int(kernel.architecture[2:]),
                DTYPES.index(kernel.dtype),
                kernel.head_dim,
                kernel.biased,
                kernel.tile.code,
                entry.best,
                entry.shared,
                entry.scratch,
                offset,
                len(entry.image),
            )
        )
        images += [bytes(padding), entry.image]
        offset += len(entry.image)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(b"".join([_HEADER.pack(_MAGIC, len(rows), _ROW.size), *rows, *images]))
    fresh.replace(path)


def read_pack(path: Path) -> tuple[Cubin, ...]:
    """The compiled kernels of a pack.

    Raises MissingError where there is no such file, PluginError for one that is no pack or is cut short.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingError(
            f"There are no compiled attention kernels at {path}; run accelaes-export plugin build."
        ) from error
    broken = PluginError(f"{path} is no whole pack of kernels; run accelaes-export plugin build again.")
    if len(data) < _HEADER.size:
        raise broken
    magic, count, width = _HEADER.unpack_from(data)
    if magic != _MAGIC or width != _ROW.size or len(data) < _HEADER.size + count * width:
        raise broken
    found = []
    for index in range(count):
        *row, offset, size = _ROW.unpack_from(data, _HEADER.size + index * width)
        architecture, dtype, head_dim, biased, tile, best, shared, scratch = row
        if offset + size > len(data) or dtype >= len(DTYPES):
            raise broken
        try:
            kernel = Kernel(f"sm{architecture}", DTYPES[dtype], head_dim, bool(biased), Tile.from_code(tile))
        except ValueError as error:
            raise broken from error
        found.append(Cubin(kernel, bool(best), shared, scratch, data[offset : offset + size]))
    return tuple(found)
