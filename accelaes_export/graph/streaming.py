"""Optimising and filling an ONNX graph whose large weights aren't in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import optimizer
from onnxscript.rewriter import onnx_fusions

from accelaes_export.backbones.weights import is_hollow


def optimize(model: ir.Model, *, fuse: bool = True) -> None:
    """The exporter's own optimisation, except that it doesn't transpose weights that aren't there (`fill` does).

    Args:
        fuse: several nodes to operators of theirs. Rotary embeddings of one table for all rows become one that ONNX
            Runtime takes for one row alone.
    """
    optimizer.optimize_ir(model, should_fold=lambda node: False if _transposes_hollow(node) else None)
    if fuse:
        onnx_fusions.fuse(model)


def fill(model: ir.Model, read: Callable[[str], torch.Tensor | None]) -> None:
    """Put tensors that are read when they are written in the place of hollow ones, transposed where a node asks for it.

    Raises:
        KeyError: a weight `read` doesn't have.
    """
    graph = model.graph
    for node in [node for node in graph if _transposes_hollow(node)]:
        weight, result = node.inputs[0], node.outputs[0]
        assert weight is not None and weight.name is not None and weight.shape is not None
        rows, columns = (int(size) for size in weight.shape)  # type: ignore[arg-type]
        transposed = ir.Value(name=f"{weight.name}.T", shape=ir.Shape((columns, rows)), type=weight.type)
        transposed.const_value = _lazy(weight, read, transpose=True)
        graph.register_initializer(transposed)
        result.replace_all_uses_with(transposed)
        graph.remove(node, safe=True)
        if not weight.uses():
            del graph.initializers[weight.name]
    for weight in graph.initializers.values():
        if _hollow(weight):
            weight.const_value = _lazy(weight, read, transpose=False)


def _lazy(weight: ir.Value, read: Callable[[str], torch.Tensor | None], *, transpose: bool) -> ir.LazyTensor:
    name, tensor = weight.name, weight.const_value
    assert name is not None and tensor is not None

    def load() -> Any:
        found = read(name)
        if found is None:
            raise KeyError(name)
        return ir.tensor((found.T if transpose else found).contiguous(), name=name)

    shape = [int(size) for size in tensor.shape]  # type: ignore[arg-type]
    shape = shape[::-1] if transpose else shape
    return ir.LazyTensor(load, dtype=tensor.dtype, shape=ir.Shape(shape), name=name)


def _hollow(value: ir.Value | None) -> bool:
    raw = getattr(getattr(value, "const_value", None), "raw", None)
    return isinstance(raw, torch.Tensor) and is_hollow(raw)


def _transposes_hollow(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and _hollow(node.inputs[0])
