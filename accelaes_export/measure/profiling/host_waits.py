"""Counting what makes the host wait for the device."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"})
"""Operators whose result the host has to see."""


class HostWaits:
    """Context manager; `count` is how many operations made the host wait.

    On a GPU torch's own watch (`set_sync_debug_mode`) counts, copies from memory that isn't pinned included. On a CPU,
    where nothing waits, those operators are counted that hand a value to the host, which would wait on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = 0
        self._cuda = device.type == "cuda"
        self._mode = _Counting()
        self._caught: Any = None

    def __enter__(self) -> HostWaits:
        if self._cuda:
            self._caught = warnings.catch_warnings(record=True)
            self._warned = self._caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        else:
            self._mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cuda:
            torch.cuda.set_sync_debug_mode("default")
            self._caught.__exit__(kind, error, trace)
            self.count = sum("called a synchronizing" in str(warning.message) for warning in self._warned)
        else:
            self._mode.__exit__(kind, error, trace)
            self.count = self._mode.count


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in _WAITING
        return func(*args, **(kwargs or {}))
