"""Everything a session asks of CUDA, behind one small object, so that the session's own logic runs without a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import torch

from accelaes_export.errors import InputError, MissingComponentError


class Stream(Protocol):
    """The part of torch.cuda.Stream a session uses."""

    @property
    def cuda_stream(self) -> int: ...
    def wait_event(self, event: Any) -> None: ...
    def record_event(self) -> Any: ...
    def synchronize(self) -> None: ...


class Graph(Protocol):
    """A captured call."""

    def replay(self, stream: Stream) -> None: ...


class Cuda(Protocol):
    """One GPU as a session sees it."""

    device: torch.device
    compute_capability: str

    def stream(self) -> Any:
        """A context manager giving a stream that follows the caller's and that the caller's follows afterwards."""

    def caller(self) -> Stream:
        """The stream that torch enqueues on now."""
        ...

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Uninitialised device memory; it lives as long as the tensor."""
        ...

    def capture(self, launch: Callable[[Stream], None]) -> Graph:
        """Record what `launch` enqueues, without running it or waiting. RuntimeError where CUDA refuses.

        What `launch` allocates must be of no use after it: all graphs of a device work in the same memory.
        """
        ...

    def current(self) -> Any:
        """A context manager that makes this GPU CUDA's current device."""


class TorchCuda:
    """`Cuda` through torch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        major, minor = torch.cuda.get_device_capability(device)
        self.compute_capability = f"sm{major}{minor}"
        self._side = torch.cuda.Stream(device)

    @classmethod
    def on(cls, device: str | None) -> TorchCuda:
        """The GPU called `device`, or torch's current one."""
        try:
            asked = torch.device(device or "cuda")
        except RuntimeError as error:
            raise InputError(f"There is no device {device!r}; say cuda or cuda:1.") from error
        if asked.type != "cuda":
            raise InputError(
                f"This engine runs on a CUDA device, not on {device!r}; say cuda, or take a bundle built for the CPU."
            )
        if not torch.cuda.is_available():
            raise MissingComponentError(
                f"torch {torch.__version__} can't use the GPU here; install a CUDA build of torch (https://pytorch.org/get-started)."
            )
        if asked.index is not None and asked.index >= torch.cuda.device_count():
            raise InputError(
                f"There is no {device}; this machine has {torch.cuda.device_count()} GPU(s), counted from 0."
            )
        return cls(torch.device("cuda", torch.cuda.current_device() if asked.index is None else asked.index))

    @contextmanager
    def stream(self) -> Iterator[torch.cuda.Stream]:
        current = torch.cuda.current_stream(self.device)
        if current.cuda_stream != 0:
            yield current
            return
        # On the legacy default stream TensorRT would synchronise the device at every call.
        self._side.wait_stream(current)
        try:
            yield self._side
        finally:
            current.wait_stream(self._side)

    def allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def caller(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def capture(self, launch: Callable[[Stream], None]) -> Graph:
        return _graph_memory(self.device.index).capture(launch)

    def current(self) -> Any:
        return torch.cuda.device(self.device)


class _GraphMemory:
    """The memory that all CUDA graphs of a device work in, whichever session they are of.

    Otherwise every bucket's graph would keep that bucket's activations for ever. What a graph leaves there is of no use
    to anybody, but two graphs must not work in it at the same time: on different streams they take turns.
    """

    def __init__(self, index: int) -> None:
        self._device = torch.device("cuda", index)
        self._stream = torch.cuda.Stream(self._device)
        self._pool = torch.cuda.graph_pool_handle()
        self._lock = threading.Lock()
        self._last: Stream | None = None  # where a graph was enqueued last

    def capture(self, launch: Callable[[Stream], None]) -> Graph:
        """See `Cuda.capture`. torch.cuda.graph would wait for the device and give all free memory back."""
        graph = torch.cuda.CUDAGraph()
        with self._lock, torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            # Only this thread's calls are restricted while it captures; other threads' allocations stay legal.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                launch(self._stream)
            finally:
                graph.capture_end()
        return _TorchGraph(graph, self)

    def replay(self, graph: torch.cuda.CUDAGraph, stream: Any) -> None:
        with self._lock:
            if self._last is not None and self._last.cuda_stream != stream.cuda_stream:
                stream.wait_event(self._last.record_event())
            with torch.cuda.stream(stream):
                graph.replay()
            self._last = stream


@cache
def _graph_memory(index: int) -> _GraphMemory:
    """One a device, as its memory is."""
    return _GraphMemory(index)


class _TorchGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, memory: _GraphMemory) -> None:
        self._graph = graph
        self._memory = memory

    def replay(self, stream: Stream) -> None:
        self._memory.replay(self._graph, stream)
