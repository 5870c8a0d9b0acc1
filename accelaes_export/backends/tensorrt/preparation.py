"""What the exported ONNX needs before TensorRT's parser reads it. Only the graph is touched, never the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accelaes_export.backends.onnx_files import external_files, read_graph
from accelaes_export.backends.tensorrt.flavour import Flavour
from accelaes_export.errors import BuildError, InputError

if TYPE_CHECKING:
    import onnx

ATTENTION_FUNCTION = "SparseQueryAttention"
DECOMPOSABLE = "TRT_decomposable"
_BIAS = 5  # its place among the attention's inputs


@dataclass(frozen=True)
class Wanted:
    """What a build asks of the graph: its dtype, the library, whether matrices become inputs, whether attention will be
    our plugin's layers."""

    dtype: str
    flavour: Flavour
    weights_as_inputs: bool = False
    for_plugin: bool = False


@dataclass(frozen=True)
class GraphPass:
    """One look at the graph, or change of it.

    Attributes:
        promise: what holds of the graph afterwards.
        needed: whether a build needs it.
        apply: does it; returns how many places were changed. Raises BuildError where it can't keep the promise.
        note: for the manifest, with the count in it.
    """

    promise: str
    needed: Callable[[Wanted], bool]
    apply: Callable[[onnx.ModelProto], int]
    note: str = ""


@dataclass(frozen=True)
class Prepared:
    """The graph to parse in place of the file, serialised (None: the file as it is), notes on what was changed, and
    the weights that became inputs."""

    graph: bytes | None
    notes: tuple[str, ...] = ()
    weights: frozenset[str] = frozenset()


def prepare(path: Path, wanted: Wanted) -> Prepared:
    """What the parser takes together with `path`, beside which it finds the external weights.

    Nothing is written and nothing is duplicated: the `PASSES` that are needed, one after the other.
    """
    model = read_graph(path)
    for name in external_files(model):
        if not (path.parent / name).is_file():
            raise InputError(f"The ONNX model {path.name} needs {name} beside it, and {path.parent} has no such file.")
    before = {value.name for value in model.graph.input}
    changed, notes = 0, []
    for one in PASSES:
        if one.needed(wanted):
            count = one.apply(model)
            changed += count
            if one.note:
                notes.append(one.note.format(count))
    weights = frozenset(value.name for value in model.graph.input) - before
    # A note without a change is still one: it says how the engine was made.
    return Prepared(model.SerializeToString() if changed or notes else None, tuple(notes), weights)


def inputs_for_weights(model: onnx.ModelProto) -> int:
    """Turn every matrix kept in external data into a graph input of its fixed shape; returns how many."""
    import onnx

    moved = [tensor for tensor in model.graph.initializer if tensor.external_data and len(tensor.dims) == 2]
    kept = [tensor for tensor in model.graph.initializer if tensor not in moved]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for tensor in moved:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return len(moved)


def narrow_biases(model: onnx.ModelProto) -> int:
    """Give every attention whose bias is the same for all queries that one row; returns how many.

    The function's body wants a row a query, which for masked text is a matrix of nq copies; the plugin doesn't.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    narrowed = 0
    for node in model.graph.node:
        if node.op_type == ATTENTION_FUNCTION and len(node.input) > _BIAS:
            producer = producers.get(_origin(node.input[_BIAS], producers))
            if producer is not None and producer.op_type == "Expand":
                node.input[_BIAS] = producer.input[0]
                narrowed += 1
    return narrowed


def mark_decomposable(model: onnx.ModelProto) -> int:
    """Set TRT_decomposable=1 on every Attention node, those inside functions included; returns how many."""
    import onnx

    marked = 0
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            if _is_attention(node) and all(a.name != DECOMPOSABLE for a in node.attribute):
                node.attribute.append(onnx.helper.make_attribute(DECOMPOSABLE, 1))
                marked += 1
    return marked


def refuse_shared_keys(model: onnx.ModelProto) -> int:
    """Raise BuildError where two attentions read the same keys: the builder would crash the process on them."""
    producers = {name: node for node in model.graph.node for name in node.output}
    seen: dict[tuple[str, ...], str] = {}
    for node in model.graph.node:
        keys = tuple(_key_source(node, producers))
        if not keys:
            continue
        name = node.name or node.output[0]
        if keys in seen:
            raise BuildError(
                f"The attentions {seen[keys]!r} and {name!r} share the keys {' + '.join(map(repr, keys))}, on which "
                "TensorRT-RTX crashes; give each its own keys in the graph, or build with another backend."
            )
        seen[keys] = name
    return 0


def _key_source(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> Iterator[str]:
    """The tensors an attention's keys are made of; nothing for any other node."""
    if node.op_type == ATTENTION_FUNCTION:
        yield _origin(node.input[1], producers)
        yield _origin(node.input[3], producers)
    elif _is_attention(node):
        key = _origin(node.input[1], producers)
        producer = producers.get(key)
        if producer is not None and producer.op_type == "Concat":
            yield from (_origin(name, producers) for name in producer.input)
        else:
            yield key


def _origin(name: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    """The tensor `name` is a plain copy of."""
    while (producer := producers.get(name)) is not None and producer.op_type == "Identity":
        name = producer.input[0]
    return name


def _is_attention(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == "Attention" and node.domain in ("", "ai.onnx"))


PASSES = (
    GraphPass(
        promise="no two attentions share keys",
        needed=lambda wanted: wanted.flavour.shared_keys_crash,
        apply=refuse_shared_keys,
    ),
    GraphPass(
        promise="a bias that is the same for all queries is one row",
        needed=lambda wanted: wanted.for_plugin,
        apply=narrow_biases,
    ),
    GraphPass(
        promise="every standard attention is marked decomposable",
        needed=lambda wanted: wanted.flavour.decompose_fp32_attention and wanted.dtype == "fp32",
        apply=mark_decomposable,
        note=f"fp32 attention is decomposed: {{}} node(s) marked {DECOMPOSABLE}",
    ),
    GraphPass(
        promise="every matrix kept in external data is an input of the graph",
        needed=lambda wanted: wanted.weights_as_inputs,
        apply=inputs_for_weights,
    ),
)
"""In the order they are applied."""
