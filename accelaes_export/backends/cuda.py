"""Everything a session asks of CUDA, behind one small object, so that the session's own logic runs without a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Uninitialised device memory; it lives as long as the tensor."""
        ...

    def capture(self, launch: Callable[[Stream], None]) -> Graph:
        """Record what `launch` enqueues, without running it. RuntimeError where CUDA refuses."""
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
        self._capturing = threading.Lock()

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

    def capture(self, launch: Callable[[Stream], None]) -> Graph:
        graph = torch.cuda.CUDAGraph()
        # Only this thread's calls are restricted while it captures; other threads' allocations stay legal.
        with (
            self._capturing,
            torch.cuda.device(self.device),
            torch.cuda.graph(graph, stream=torch.cuda.Stream(self.device), capture_error_mode="thread_local"),
        ):
            launch(torch.cuda.current_stream(self.device))
        return _TorchGraph(graph)

    def current(self) -> Any:
        return torch.cuda.device(self.device)


class _TorchGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph

    def replay(self, stream: Stream) -> None:
        with torch.cuda.stream(stream):  # type: ignore[arg-type]
            self._graph.replay()
