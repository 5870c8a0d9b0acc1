"""Graphs beside the focus step, such as a policy's programs: what is compiled, and what an opened one is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.tensors import TensorSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GraphRequest:
    """A graph to make in an engine's own format.

    Attributes:
        name: its files' stem.
        inputs, outputs: its tensors, whose letters vary.
        largest: the letters' largest sizes.
        targets: as the engine was compiled for.
        destination: an existing folder that receives the files.
        onnx: the graph, for backends that read ONNX.
        program: the graph, for backends that read programs.
        weight: of a program, its parameters and constants by name, which it was traced with other values of; None: a
            graph without weights, or with small ones.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    largest: Mapping[str, int]
    targets: tuple[str, ...]
    destination: Path
    onnx: Path | None = None
    program: torch.export.ExportedProgram | None = None
    weight: Callable[[str], torch.Tensor | None] | None = None

    @property
    def least(self) -> dict[str, int]:
        """The letters' smallest sizes: 1, and of "M-34" one more than what is left out."""
        return {letter: 1 + max(spec.less(letter) for spec in self.outputs) for letter in self.largest}

    @property
    def onnx_file(self) -> Path:
        """The graph, of a request to a backend that reads ONNX."""
        assert self.onnx is not None, "the builder exports for backends that read ONNX"
        return self.onnx


class OpenedGraph(Protocol):
    """An opened graph: a function of tensors by name, which may be called from several threads in turn."""

    def __call__(self, tensors: Mapping[str, Any], /) -> dict[str, torch.Tensor]:
        """Its outputs by name, new tensors on the engine's device.

        Args:
            tensors: its inputs and any others, which it leaves alone; plain numbers where a shape is ().
        """
        ...


class GraphTensors:
    """Brings what a graph is given into its contract's form, and makes room for what it writes.

    Args:
        inputs, outputs: its tensors.
        device: where they are.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], device: torch.device) -> None:
        self._inputs = {spec.name: (spec.shape, torch_dtype(spec.dtype)) for spec in inputs}
        self._outputs = {spec.name: (spec, torch_dtype(spec.dtype)) for spec in outputs}
        self._device = device

    def given(self, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The inputs, contiguous, in order."""
        import torch

        return {
            name: torch.as_tensor(tensors[name], dtype=dtype, device=self._device).contiguous()
            for name, (_, dtype) in self._inputs.items()
        }

    def room(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """New tensors for the outputs, sized as the inputs' letters are."""
        import torch

        letters = {
            str(d): size
            for name, (shape, _) in self._inputs.items()
            for d, size in zip(shape, inputs[name].shape, strict=True)
            if isinstance(d, str)
        }
        return {
            name: torch.empty(spec.sized(letters), dtype=dtype, device=self._device)
            for name, (spec, dtype) in self._outputs.items()
        }
