"""An ONNX Runtime session over the caller's torch tensors."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelaes_export.backends.base import KernelTime
from accelaes_export.backends.graphs import GraphTensors
from accelaes_export.backends.tensor_table import TensorTable
from accelaes_export.contract.tensors import GraphContract, TensorSpec
from accelaes_export.errors import AccelAesError, BundleError, first_line
from accelaes_export.memory import lacks_memory

if TYPE_CHECKING:
    import torch

    from accelaes_export.backends.workspace import Workspace, Workspaces

_ELEMENT_TYPES = {"fp32": 1, "fp16": 10, "bf16": 16, "int64": 7}  # onnx.TensorProto.DataType


class OnnxRuntimeSession:
    """A focus step in ONNX Runtime, reading and writing the caller's torch tensors in place.

    Args:
        session: the InferenceSession.
        contract, device: its tensor table, and where its tensors are.
        opened: opens the model once more, as a session that writes a profile to files with a given prefix.
    """

    def __init__(
        self, session: Any, contract: GraphContract, device: torch.device, opened: Callable[[str], Any]
    ) -> None:
        self.contract = contract
        self.device = device
        self._session = session
        self._opened = opened
        self._table = TensorTable(contract, device)
        self.workspaces = _workspaces(device)
        self._elements = {spec.name: _ELEMENT_TYPES[spec.dtype] for spec in (*contract.inputs, *contract.outputs)}
        _check_names("inputs", [s.name for s in contract.inputs], [a.name for a in session.get_inputs()])
        _check_names("outputs", [s.name for s in contract.outputs], [a.name for a in session.get_outputs()])

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
        workspace: Workspace | None = None,
    ) -> None:
        """One focus step; see `Session.run`. On CUDA the outputs are complete when it returns."""
        self._table.check(inputs, outputs)
        _call(self._session, self.device, self._elements, inputs, outputs, "a focus step")

    def kernel_times(
        self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor], calls: int
    ) -> tuple[KernelTime, ...]:
        """Time by operator over `calls` focus steps, after one that isn't counted. Opens the model a second time."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._opened(str(Path(folder) / "profile"))
            watched = OnnxRuntimeSession(session, self.contract, self.device, self._opened)
            for _ in range(1 + calls):
                watched.run(inputs, outputs)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        first = next(event for event in events if event["name"] == "model_run")
        counted: dict[str, KernelTime] = {}
        for event in events:
            if event["cat"] == "Node" and "op_name" in event["args"] and event["ts"] >= first["ts"] + first["dur"]:
                name = event["args"]["op_name"]
                so_far = counted.get(name, KernelTime(name, 0, 0.0))
                counted[name] = KernelTime(name, so_far.calls + 1, so_far.seconds + 1e-6 * event["dur"])
        return tuple(counted.values())


class OnnxRuntimeGraph:
    """A graph beside the focus step; see `OpenedGraph`.

    Args:
        session: the InferenceSession.
        inputs, outputs: its tensors, on `device`.
    """

    def __init__(
        self, session: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], device: torch.device
    ) -> None:
        self._session = session
        self._device = device
        self._tensors = GraphTensors(inputs, outputs, device)
        self._elements = {spec.name: _ELEMENT_TYPES[spec.dtype] for spec in (*inputs, *outputs)}
        _check_names("inputs", [spec.name for spec in inputs], [a.name for a in session.get_inputs()])
        _check_names("outputs", [spec.name for spec in outputs], [a.name for a in session.get_outputs()])

    def __call__(self, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        inputs = self._tensors.given(tensors)
        outputs = self._tensors.room(inputs)
        _call(self._session, self._device, self._elements, inputs, outputs, "a graph beside the focus step")
        return outputs


def _call(
    session: Any,
    device: torch.device,
    elements: Mapping[str, int],
    inputs: Mapping[str, torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
    what: str,
) -> None:
    """Run a session on tensors where they are."""
    binding = session.io_binding()  # one belongs to one call, the InferenceSession to all threads
    kind, index = device.type, device.index or 0
    for name, tensor in inputs.items():
        binding.bind_input(name, kind, index, elements[name], list(tensor.shape), tensor.data_ptr())
    for name, tensor in outputs.items():
        if tensor.numel():  # an empty one has no address, and nothing to fetch
            binding.bind_output(name, kind, index, elements[name], list(tensor.shape), tensor.data_ptr())
    if kind == "cuda":
        _wait_for_torch(device)
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        if lacks_memory(error):
            raise MemoryError(first_line(error)) from error
        raise AccelAesError(f"ONNX Runtime failed in {what}: {first_line(error)}.") from error


def _wait_for_torch(device: torch.device) -> None:
    """The provider runs on a stream of its own, so what torch still computes must be done first."""
    import torch

    torch.cuda.current_stream(device).synchronize()


def _workspaces(device: torch.device) -> Workspaces:
    from accelaes_export.backends.cuda import TorchCuda
    from accelaes_export.backends.workspace import Workspaces

    return Workspaces(device, TorchCuda.on(str(device)) if device.type == "cuda" else None)


def _check_names(kind: str, wanted: list[str], found: list[str]) -> None:
    if sorted(wanted) != sorted(found):
        different = ", ".join(sorted(set(wanted) ^ set(found))[:6])
        raise BundleError(
            f"The engine's {kind} differ from the manifest's contract in {different}; build the bundle again."
        )
