"""An opened TensorRT engine: one execution context per bucket, the caller's tensors bound by address."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accelaes_export.backends.cuda import Cuda, Stream
from accelaes_export.backends.cuda_graphs import GraphedCalls
from accelaes_export.backends.tensor_table import StepSizes, TensorTable
from accelaes_export.backends.tensorrt.library import Library
from accelaes_export.backends.tensorrt.messages import Messages
from accelaes_export.backends.workspace import Workspace, Workspaces
from accelaes_export.contract.tensors import GraphContract
from accelaes_export.errors import AccelAesError

if TYPE_CHECKING:
    import torch

ADDRESS_ALIGNMENT = 256
"""Bytes; TensorRT refuses tensors that start elsewhere."""

_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int64": 8}


class TensorRTSession:
    """A focus step in TensorRT, enqueued on torch's current stream: like a kernel, it returns before the GPU is done.

    Threads may share it. Calls of one bucket are enqueued one at a time and run in that order on the GPU, because
    an execution context has one scratch memory; calls of different buckets may overlap.

    Args:
        trt, flavour: the library's module and what is special about it.
        engine: the deserialised ICudaEngine; profile i is bucket i of the contract.
        contract: its tensor table.
        cuda: the GPU it runs on.
        messages: what TensorRT's logger collects, for errors.
        cuda_graphs: capture calls on a workspace's tensors, and replay them.
        weights: those that are inputs of the engine, by name, on the GPU; all buckets share them.
    """

    def __init__(
        self,
        library: Library,
        engine: Any,
        contract: GraphContract,
        cuda: Cuda,
        *,
        cuda_graphs: bool,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.contract = contract
        self.device: torch.device = cuda.device
        self._trt, self._flavour, self._messages = library.trt, library.flavour, library.messages
        self._engine, self._cuda = engine, cuda
        self._table = TensorTable(contract, cuda.device, ADDRESS_ALIGNMENT)
        self.workspaces = Workspaces(cuda.device, cuda)
        self._graphed = GraphedCalls(cuda, cuda_graphs)
        self._weights = dict(weights or {})
        self._contexts: dict[int, _BucketContext] = {}
        self._lock = threading.Lock()
        # TensorRT wants an address even for a tensor of no elements, such as the background at n = N.
        self._nothing = cuda.allocate(ADDRESS_ALIGNMENT)

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
        workspace: Workspace | None = None,
    ) -> None:
        """One focus step; see `Session.run`. Read the outputs on the same stream, or synchronise first."""
        sizes = self._table.check(inputs, outputs)
        bucket = self._bucket(sizes.n)
        with bucket.lock, self._cuda.current(), self._cuda.stream() as stream:
            if bucket.done is not None:
                stream.wait_event(bucket.done)
            self._step(bucket, sizes, self._addresses(bucket, sizes, inputs, outputs), stream, workspace)
            bucket.done = stream.record_event()

    def _step(
        self,
        bucket: _BucketContext,
        sizes: StepSizes,
        addresses: dict[str, int],
        stream: Stream,
        workspace: Workspace | None,
    ) -> None:
        key = (id(self), sizes, *addresses.values())
        if self._graphed.replay(workspace, key, stream):
            return
        bucket.bind(sizes, self._table.shapes(sizes)[0], addresses)
        bucket.enqueue(stream)
        self._graphed.capture(workspace, key, bucket.enqueue, lambda: bucket.capturable(stream))

    def _bucket(self, n: int) -> _BucketContext:
        with self._lock:
            if n not in self._contexts:
                self._contexts[n] = self._new_bucket(self.contract.buckets.index(n))
            return self._contexts[n]

    def _new_bucket(self, profile: int) -> _BucketContext:
        """A context of its own for every profile, with scratch memory for that profile alone."""
        strategy = self._trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        with self._cuda.current(), self._cuda.stream() as stream:
            if self._flavour.specialises_kernels:
                options = self._engine.create_runtime_config()
                options.set_execution_context_allocation_strategy(strategy)
                if self._graphed.wanted:
                    # A graph would otherwise keep the slow stand-in kernels that were there when it was captured.
                    kinds = self._trt.DynamicShapesKernelSpecializationStrategy
                    options.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
                context = self._engine.create_execution_context(options)
            else:
                context = self._engine.create_execution_context(strategy)
            if context is None or not context.set_optimization_profile_async(profile, stream.cuda_stream):
                raise AccelAesError(
                    f"{self._flavour.name} has no room for the bucket of {self.contract.buckets[profile]} tokens on "
                    f"{self.device}: {self._messages.quote()}. Free GPU memory, or build "
                    "with a smaller batch or resolution."
                )
            stream.synchronize()
        return _BucketContext(context, self._flavour.name, self._messages)

    def _addresses(
        self,
        bucket: _BucketContext,
        sizes: StepSizes,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
    ) -> dict[str, int]:
        """Every engine tensor's address, in the contract's order.

        An output nobody asked for is still written: it gets memory of its own, for TensorRT reads outputs back
        where a later layer uses them, so two must never share.
        """
        addresses = {name: tensor.data_ptr() for name, tensor in self._weights.items()}
        for spec in self.contract.inputs:
            addresses[spec.name] = inputs[spec.name].data_ptr() or self._nothing.data_ptr()
        for spec in self.contract.outputs:
            if spec.name in outputs:
                addresses[spec.name] = outputs[spec.name].data_ptr() or self._nothing.data_ptr()
                continue
            if spec.name not in bucket.unread:
                largest = spec.sized(self.contract.sizes(sizes.n))
                bucket.unread[spec.name] = self._cuda.allocate(math.prod(largest) * _BYTES[spec.dtype])
            addresses[spec.name] = bucket.unread[spec.name].data_ptr()
        return addresses


class _BucketContext:
    """One bucket's execution context and what it is bound to. Everything but `lock` is used under `lock`."""

    def __init__(self, context: Any, engine_name: str, messages: Messages) -> None:
        self.lock = threading.Lock()
        self.unread: dict[str, torch.Tensor] = {}  # memory for outputs the caller leaves out
        self.done: Any = None  # event after the last call
        self._context = context
        self._engine_name = engine_name
        self._messages = messages
        self._sizes: StepSizes | None = None
        self._bound: dict[str, int] = {}

    def bind(self, sizes: StepSizes, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        """Tell the context what changed since the last call."""
        if sizes != self._sizes:
            self._sizes = None
            for name, shape in shapes.items():
                self._accept(self._context.set_input_shape(name, shape), f"the shape {shape} of {name!r}")
            self._sizes = sizes
        for name, address in addresses.items():
            if self._bound.get(name) != address:
                self._accept(self._context.set_tensor_address(name, address), f"the address of {name!r}")
                self._bound[name] = address

    def enqueue(self, stream: Stream) -> None:
        self._accept(self._context.execute_async_v3(stream.cuda_stream), "a focus step")

    def capturable(self, stream: Stream) -> bool:
        """TensorRT-RTX knows whether its kernels for these shapes are ready; TensorRT proper is always."""
        asks = getattr(self._context, "is_stream_capturable", None)
        return bool(asks(stream.cuda_stream)) if asks is not None else True

    def _accept(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise AccelAesError(f"{self._engine_name} refused {what}: {self._messages.quote()}.")
