"""Giving memory back between the heavy stages of a build, so that their peaks don't add up."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MADV_DONTNEED = 4  # <sys/mman.h>
_INTERVAL = 0.01  # seconds


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
    for line in Path("/proc/self/maps").read_text().splitlines():
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
