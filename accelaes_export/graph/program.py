"""The focus step as a torch program for backends that compile it themselves (backends.base.FocusProgram)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from accelaes_export.backbones.weights import is_hollow
from accelaes_export.graph.export import trace
from accelaes_export.graph.focus_step import FocusStep
from accelaes_export.plugins.sparse_query_attention.torch_operator import concatenated_attention

_MODEL = "model."  # where a FocusStep has the transformer


class TracedFocusStep:
    """Traces a focus step on demand, for any device and bucket.

    Args:
        make: the step, of a model with all its weights (True) or of a hollow one (False; see backbones.weights).
        read: the transformer's stored weights by name, for those a hollow model was made without.
    """

    def __init__(self, make: Callable[[bool], FocusStep], read: Callable[[str], torch.Tensor | None]) -> None:
        self._make = make
        self._read = read
        self._step: FocusStep | None = None
        self._filled = False
        self._hollow = frozenset[str]()
        self._constants: dict[str, torch.Tensor] = {}

    def trace(
        self, device: torch.device, n: int | None = None, *, filled: bool = False, operator: bool = False
    ) -> torch.export.ExportedProgram:
        """See FocusProgram.trace."""
        if self._step is None or self._filled != filled:
            self._step, self._filled = self._make(filled), filled
            self._hollow = frozenset(name for name, value in self._step.named_parameters() if is_hollow(value))
            _place(self._step, self._hollow, device)
        spelt = {} if operator else {torch.ops.accelaes.sparse_query_attention.default: concatenated_attention}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own internals
            program = trace(self._step, n).run_decompositions(spelt)
        for name, constant in program.constants.items():
            if isinstance(constant, torch.Tensor):
                self._constants[name] = program.constants[name] = constant.contiguous()
        return program

    def weight(self, name: str) -> torch.Tensor:
        """See FocusProgram.weight.

        Raises:
            KeyError: the program has no such weight.
        """
        assert self._step is not None, "weights are asked for by the names of a program that was traced"
        if name in self._hollow:
            found = self._read(name.removeprefix(_MODEL))
            if found is None:
                raise KeyError(name)
            return found.contiguous()
        tensors = {**dict(self._step.named_parameters()), **dict(self._step.named_buffers()), **self._constants}
        return tensors[name].detach()


def _place(step: FocusStep, hollow: frozenset[str], device: torch.device) -> None:
    """Bring the step to the device, everything contiguous; a hollow matrix becomes memory nobody has touched.

    Compiled code counts on the strides it was traced with. Memory that was allocated and never written takes no
    room on the host.
    """
    for name, tensor in (*step.named_parameters(), *step.named_buffers()):
        if name in hollow:
            tensor.data = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        else:
            tensor.data = tensor.data.to(device).contiguous()
