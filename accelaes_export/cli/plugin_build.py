"""`plugin build` as a function: what is written on the command line, checked, compiled and packed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from accelaes_export.errors import BuildError, InputError, MissingComponentError
from accelaes_export.files.writing import check_writable
from accelaes_export.options import parse_names
from accelaes_export.plugins.sparse_query_attention.compiling import Progress, compile_kernels, compiled_before
from accelaes_export.plugins.sparse_query_attention.cubins import COMMON_HEAD_DIMS, default_pack, kernels, write_pack
from accelaes_export.plugins.sparse_query_attention.errors import MissingError, PluginError
from accelaes_export.plugins.sparse_query_attention.tiles import ARCHITECTURES, DTYPES


@dataclass(frozen=True)
class Pack:
    """A file of compiled kernels, how many it has, and for which GPUs."""

    path: Path
    kernels: int
    architectures: tuple[str, ...]


def build(
    *,
    architectures: str | None = None,
    dtypes: str | None = None,
    head_dims: str | None = None,
    jobs: int | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
) -> Pack:
    """Compile the attention kernel's variants.

    Args:
        architectures, dtypes, head_dims: "sm86,sm120", "fp16", "64,128"; all, both, and the common ones if None.
        jobs: compilers at a time; one a core if None.
        output: a file with these kernels alone; None: the Python plugin's own, which keeps those compiled before.
        progress: called with how many variants are done, of how many, and the last one's name.

    Raises InputError for what the kernel doesn't have, MissingComponentError without Triton, BuildError where a
    variant doesn't compile.
    """
    check_writable(output)
    sizes = tuple(map(str, COMMON_HEAD_DIMS)) if head_dims is None else parse_names("--head-dim", head_dims)
    if not all(re.fullmatch("[0-9]{1,9}", size) for size in sizes):
        raise InputError(f"--head-dim is {head_dims!r}; give head sizes with commas between them, such as 64,128.")
    try:
        wanted = kernels(
            ARCHITECTURES if architectures is None else parse_names("--arch", architectures),
            DTYPES if dtypes is None else parse_names("--dtype", dtypes),
            tuple(map(int, sizes)),
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    try:
        packed = compile_kernels(wanted, jobs=jobs, progress=progress)
        if output is None:
            packed = tuple({cubin.kernel: cubin for cubin in (*compiled_before(), *packed)}.values())
    except MissingError as error:
        raise MissingComponentError(str(error)) from error
    except PluginError as error:
        raise BuildError(str(error)) from error
    path = default_pack() if output is None else output
    write_pack(path, packed)
    found = {cubin.kernel.architecture for cubin in packed}
    return Pack(path, len(packed), tuple(name for name in ARCHITECTURES if name in found))
