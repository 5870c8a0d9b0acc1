"""Memory: given back between heavy stages, so that their peaks don't add up, and refused where there is too little."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from accelaes_export.errors import InputError

if TYPE_CHECKING:
    import torch

_MADV_DONTNEED = 4  # <sys/mman.h>
_INTERVAL = 0.01  # seconds
_LIBRARIES = 4_000_000_000  # bytes of addresses that torch, diffusers and an engine's library take, rounded up
_WEIGHT_COPIES = 3  # mapped from the file, read, and packed for the kernels
_LACKING = ("allocate memory", "bad_alloc", "out of memory", "failed to map segment", "start new thread")


def require_address_space(weights: int = 0) -> None:
    """InputError where a limit on this process's addresses (ulimit -v) leaves too few for an engine.

    Near such a limit threads can't be started, and libraries wait forever for one that wasn't.

    Args:
        weights: bytes of the engine's files.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed = _LIBRARIES + _WEIGHT_COPIES * weights
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise InputError(
            f"This process may have {limit / 1e9:.1f} GB of addresses (ulimit -v), and about {needed / 1e9:.1f} GB are "
            "needed; raise the limit, or limit memory by a control group instead."
        )


def lacks_memory(error: BaseException) -> bool:
    """Whether an error of one of the libraries, which share no class for it, says that memory ran out."""
    said = str(error)
    return isinstance(error, MemoryError) or any(words in said for words in _LACKING)


def drop_weights(model: torch.nn.Module) -> None:
    """Free a model's weights, whoever else holds its parameters. It can't run any more."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.new_empty(0)


def release() -> None:
    """Free what is only held by reference cycles, and hand the allocator's free pages back to the system.

    Weights of a few megabytes each come from the C heap, which keeps them after they are freed.
    """
    gc.collect()
    libc = _libc()
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@contextmanager
def dropping_mapped(paths: Sequence[Path]) -> Iterator[None]:
    """Keep files that a library has mapped for reading from filling this process's memory.

    A builder maps gigabytes of weights and reads each page a few times; pages read stay resident, on top of the
    copies it makes. Dropping pages of a read-only mapping is safe, as the next access brings them back from the
    system's file cache; the mapping must be there when the block is entered and outlive it. Does nothing where
    /proc or madvise isn't there.
    """
    libc, done = _libc(), threading.Event()
    mapped = tuple(str(path.resolve()) for path in paths)
    ranges = _read_only_mappings(mapped) if mapped and Path("/proc/self/maps").exists() else []

    def watch() -> None:
        while not done.wait(_INTERVAL):
            for start, end in ranges:
                assert libc is not None
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)

    if libc is None or not ranges:
        yield
        return
    thread = threading.Thread(target=watch, name="drop mapped pages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _read_only_mappings(paths: tuple[str, ...]) -> list[tuple[int, int]]:
    """Address ranges at which one of `paths` is mapped without permission to write."""
    found = []
    for line in os.fsdecode(Path("/proc/self/maps").read_bytes()).split("\n"):  # a path may be of any bytes
        if line.endswith(paths):
            span, permissions = line.split()[:2]
            if permissions[1] == "-":
                start, _, end = span.partition("-")
                found.append((int(start, 16), int(end, 16)))
    return found


def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except OSError:
        return None
