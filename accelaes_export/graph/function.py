"""The ONNX side of `accelaes::SparseQueryAttention`: an opaque node while exporting, a model-local function after.

torch.onnx inlines functions it knows the body of, so the torch operator is translated to a node of an operator
set without schemas; the function with a standard body is appended to the saved model. Runtimes without a plugin
of this name inline the body; TensorRT with the plugin registered takes its kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxscript
from onnx import helper

from accelaes_export.contract.tensors import GraphContract

DOMAIN = "accelaes"
NAME = "SparseQueryAttention"
VERSION = 1
OPSET = 23  # the first with Attention, and the first in which functions reach TensorRT-RTX's parser

_INPUTS = ("q", "k", "v", "k_bg", "v_bg")
_BIAS = "bias"  # a sixth input, of models that mask their text

_onnx = onnxscript.values.Opset("", OPSET)
_accelaes = onnxscript.values.Opset(DOMAIN, VERSION)
_schema = onnx.defs.OpSchema(
    NAME,
    DOMAIN,
    VERSION,
    inputs=[
        *(onnx.defs.OpSchema.FormalParameter(name, "T") for name in _INPUTS),
        onnx.defs.OpSchema.FormalParameter(_BIAS, "T", param_option=onnx.defs.OpSchema.FormalParameterOption.Optional),
    ],
    outputs=[onnx.defs.OpSchema.FormalParameter("out", "T")],
    type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
    attributes=[onnx.defs.OpSchema.Attribute("scale", onnx.defs.OpSchema.AttrType.FLOAT, "", required=True)],
)
_sparse_query_attention = onnxscript.values.Op(_accelaes, NAME, op_schema=_schema)


def translate(q: Any, k: Any, v: Any, k_bg: Any, v_bg: Any, scale: float, bias: Any = None) -> Any:
    """torch.onnx's translation of the operator: the opaque node."""
    biases = () if bias is None else (bias,)
    return _sparse_query_attention(q, k, v, k_bg, v_bg, *biases, scale=scale)


def translate_sort(self: Any, stable: bool, dim: int = -1, descending: bool = False) -> Any:
    """torch.onnx has no translation of a stable sort. TopK of all values is one: equal ones stay in their order."""
    size = _onnx.Gather(_onnx.Shape(self), _onnx.Constant(value_ints=[dim]))
    return _onnx.TopK(self, size, axis=dim, largest=int(descending), sorted=1)


def function_proto(*, biased: bool = False) -> onnx.FunctionProto:
    """The function: keys and values concatenated, then Attention-23 with the node's own scale (and bias)."""
    bias = [_BIAS] if biased else []
    attention = helper.make_node("Attention", ["q", "keys", "values", *bias], ["out"])
    attention.attribute.append(onnx.AttributeProto(name="scale", type=onnx.AttributeProto.FLOAT, ref_attr_name="scale"))
    return helper.make_function(
        DOMAIN,
        NAME,
        inputs=[*_INPUTS, *bias],
        outputs=["out"],
        nodes=[
            helper.make_node("Concat", ["k", "k_bg"], ["keys"], axis=2),
            helper.make_node("Concat", ["v", "v_bg"], ["values"], axis=2),
            attention,
        ],
        opset_imports=[helper.make_opsetid("", OPSET)],
        attributes=["scale"],
    )


def _where_asked(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The same nodes, but attention is computed only where there are queries: ONNX Runtime refuses it without any."""
    found = []
    for node in nodes:
        if node.op_type != "Attention":
            found.append(node)
            continue
        (out,), (q, *_) = node.output, node.input
        size, zero, asked = (f"{out}.{name}" for name in ("size", "zero", "asked"))
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        inner.output[0] = f"{out}.attention"
        empty = helper.make_node("Identity", [q], [f"{out}.empty"])  # no queries have no answers
        found += [
            helper.make_node("Size", [q], [size]),
            helper.make_node("Constant", [], [zero], value_int=0),
            helper.make_node("Greater", [size, zero], [asked]),
            helper.make_node(
                "If",
                [asked],
                [out],
                then_branch=helper.make_graph([inner], "attend", [], [_any(inner.output[0])]),
                else_branch=helper.make_graph([empty], "nothing", [], [_any(empty.output[0])]),
            ),
        ]
    return found


def _any(name: str) -> onnx.ValueInfoProto:
    """An output whose type is whatever comes."""
    return onnx.ValueInfoProto(name=name)


def _let_parts_rest(model: onnx.ModelProto) -> None:
    """Make the model one whose attentions may have no queries."""
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        guarded = _where_asked(list(nodes))
        del nodes[:]
        nodes.extend(guarded)


def finish_model(path: Path, contract: GraphContract) -> None:
    """Give the saved model at `path` the function's definition and the contract's letters; weights aren't touched."""
    model = onnx.load(path, load_external_data=False)
    # All of a model's attentions mask the text, or none does: no parser has to read a function with inputs left out.
    biased = any(node.op_type == NAME and len(node.input) > len(_INPUTS) for node in model.graph.node)
    model.functions.append(function_proto(biased=biased))
    if contract.own_parts is not None:
        _let_parts_rest(model)
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    # The exporter names every symbol by a number of its own, also where two are the same letter.
    del model.graph.value_info[:]
    values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    for spec in (*contract.inputs, *contract.outputs):
        for dimension, size in zip(values[spec.name].type.tensor_type.shape.dim, spec.shape, strict=True):
            if isinstance(size, str):
                dimension.dim_param = size
    onnx.save_model(model, path)
