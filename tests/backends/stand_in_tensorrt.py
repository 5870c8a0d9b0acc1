"""A TensorRT and a CUDA of plain Python, for the session's own logic: what is bound, captured, ordered, refused."""

from __future__ import annotations

import ctypes
import enum
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from accelaes_export.backends import cuda as real
from accelaes_export.contract.tensors import GraphContract
from tests.backends import tiny_focus_step as tiny


class Diagnostics(enum.IntFlag):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    MALFORMED_ENGINE = 32


NOTHING_WRONG = Diagnostics(0)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that starts at a multiple of 256 bytes, as CUDA's allocator gives them."""
    memory = torch.empty(tensor.nbytes + 256, dtype=torch.uint8)
    start = -memory.data_ptr() % 256
    return memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)


@dataclass
class Stream:
    cuda_stream: int
    log: list[tuple[str, Any]] = field(default_factory=list)

    def wait_event(self, event: Any) -> None:
        self.log.append(("wait", event))

    def record_event(self) -> Any:
        event = (self.cuda_stream, len(self.log))
        self.log.append(("record", event))
        return event

    def synchronize(self) -> None:
        self.log.append(("synchronize", None))


class Graph:
    """Notes where it was replayed; `launch` is what it does then."""

    def __init__(self, launch: Callable[[], None] = lambda: None) -> None:
        self.replays: list[int] = []
        self.launch = launch

    def replay(self, stream: real.Stream) -> None:
        self.replays.append(stream.cuda_stream)
        self.launch()


class Cuda:
    """Implements accelaes_export.backends.cuda.Cuda on the CPU; `refuses` makes captures fail.

    Args:
        relaunches: graphs do what was captured when they are replayed; otherwise replays are only counted.
    """

    def __init__(self, compute_capability: str = "sm89", *, relaunches: bool = False) -> None:
        self.relaunches = relaunches
        self.device = torch.device("cpu")
        self.compute_capability = compute_capability
        self.current_stream = Stream(7)
        self.captured: list[Graph] = []
        self.refuses = False

    @contextmanager
    def stream(self) -> Iterator[Stream]:
        yield self.current_stream

    def caller(self) -> Stream:
        return self.current_stream

    def allocate(self, nbytes: int) -> torch.Tensor:
        return aligned(torch.zeros(nbytes, dtype=torch.uint8))

    def capture(self, launch: Callable[[real.Stream], None]) -> Graph:
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        launch(Stream(99))
        self.captured.append(Graph(lambda: launch(Stream(99))) if self.relaunches else Graph())
        return self.captured[-1]

    def current(self) -> Any:
        return nullcontext()


class Context:
    """An execution context that fills every output with bytes of profile + 1 and notes how it was used."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.settings = 0
        self.launches: list[int] = []
        self.ready_for_capture = True
        self.refuse: set[str] = set()
        self.together = 0
        self.most_together = 0
        self._guard = threading.Lock()

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return "profile" not in self.engine.refuse

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.settings += 1
        self.shapes[name] = shape
        return name not in self.refuse

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.settings += 1
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.ready_for_capture

    def execute_async_v3(self, stream: int) -> bool:
        if "launch" in self.refuse:
            return False
        with self._guard:
            self.together += 1
            self.most_together = max(self.most_together, self.together)
        self.launches.append(stream)
        table = self.engine.contract
        B, n = self.shapes["focus_index"]
        for spec in table.outputs:
            nbytes = torch.empty(spec.sized(table.sizes(n, B)), dtype=tiny.TORCH_DTYPES[spec.dtype]).nbytes
            ctypes.memset(self.addresses[spec.name], self.profile + 1, nbytes)
        time.sleep(self.engine.takes)
        with self._guard:
            self.together -= 1
        return True


class Engine:
    def __init__(self, contract: GraphContract, profiles: int | None = None) -> None:
        self.contract = contract
        self.names = [spec.name for spec in (*contract.inputs, *contract.outputs)]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(contract.buckets) if profiles is None else profiles
        self.contexts: list[Context] = []
        self.options: list[Any] = []
        self.refuse: set[str] = set()
        self.takes = 0.0

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(set_execution_context_allocation_strategy=lambda strategy: None)

    def create_execution_context(self, options: Any) -> Context:
        self.options.append(options)
        self.contexts.append(Context(self))
        return self.contexts[-1]


def module(engine: Engine | None, *, diagnostics: Diagnostics = NOTHING_WRONG, version: str = "1.7.1") -> Any:
    """A stand-in for the tensorrt module whose runtime opens any file as `engine`, or fails where that is None."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: Any) -> Engine | None:
            assert bytes(plan[:4]) == b"plan"
            return engine

        def get_engine_validity(self, plan: Any) -> tuple[int, int]:
            return 2, int(diagnostics)

    return SimpleNamespace(
        __version__=version,
        Runtime=Runtime,
        EngineInvalidityDiagnostics=Diagnostics,
        ExecutionContextAllocationStrategy=SimpleNamespace(ON_PROFILE_CHANGE="on profile change"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
    )
