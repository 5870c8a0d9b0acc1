"""A policy's programs as graphs: traced with what they read alone, and written as ONNX.

A program is given all that a run knows, and most read some of it. What nothing reads in the end isn't kept at all: the
state of a preset are the tensors that some program's answer depends on.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from accelaes_export.contract.tensors import NEW, TensorSpec
from accelaes_export.errors import BuildError, first_line
from accelaes_export.graph.export import quiet
from accelaes_export.graph.function import OPSET
from accelaes_export.policies.programs import Program, Shape


@dataclass(frozen=True)
class Sizes:
    """What the letters of programs' shapes stand for: N and w are fixed, B and b the largest."""

    B: int
    b: int
    N: int
    w: int


@dataclass(frozen=True)
class PolicyGraph:
    """One program as it is exported: its tensors in order, those it makes anew with `NEW` behind their names.

    `code` is what it does, written out.
    """

    program: Program
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sizes: Sizes
    code: str

    @property
    def fingerprint(self) -> str:
        """Hex digest of what it computes: of two programs with one, either will do."""
        tensors = [spec.model_dump(mode="json") for spec in (*self.inputs, *self.outputs)]
        return hashlib.sha256(json.dumps([self.code, tensors], sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        return self.program.name

    def trace(self) -> torch.export.ExportedProgram:
        """As a torch program by itself, B and b dynamic."""
        return _traced([self])


def policy_graphs(programs: Sequence[Program], sizes: Sizes) -> tuple[PolicyGraph, ...]:
    """The programs with the inputs they read and the outputs that somebody reads.

    Raises:
        BuildError: a program can't be traced.
    """
    whole = {program.name: _Whole.of(program, sizes) for program in programs}
    state = {name for program in programs for name in program.outputs.keys() & program.inputs.keys()}
    live: set[str] = set()  # of the state, what an answer depends on
    while True:
        wanted = {p.name: [name for name in p.outputs if name not in state or name in live] for p in programs}
        read = {p.name: {name for output in wanted[p.name] for name in whole[p.name].reads[output]} for p in programs}
        found = set().union(*read.values()) & state
        if found <= live:
            break
        live |= found
    return tuple(
        PolicyGraph(
            program,
            tuple(_spec(name, shape, sizes) for name, shape in program.inputs.items() if name in read[program.name]),
            tuple(_spec(name + NEW * (name in state), program.outputs[name], sizes) for name in wanted[program.name]),
            sizes,
            whole[program.name].code,
        )
        for program in programs
        if wanted[program.name]
    )


def save_programs(graphs: Mapping[str, PolicyGraph], folder: Path) -> None:
    """Write each as ONNX, `NAME.onnx` by its key. They are exported together: most of an export is the same for all.

    Raises:
        BuildError: the exporter failed.
    """
    together = list(graphs.values())
    names = [(key, spec) for key, graph in graphs.items() for spec in graph.inputs]
    made = [(key, spec) for key, graph in graphs.items() for spec in graph.outputs]
    try:
        with torch.no_grad(), quiet():
            exported = torch.onnx.export(
                _traced(together),
                dynamo=True,
                opset_version=OPSET,
                input_names=[f"{key}/in/{spec.name}" for key, spec in names],
                output_names=[f"{key}/out/{spec.name}" for key, spec in made],
                optimize=True,
                verbose=False,
            )
            assert exported is not None
        extractor = onnx.utils.Extractor(exported.model_proto)
    except Exception as error:
        raise BuildError(f"The ONNX exporter failed on the policy's programs: {first_line(error)}") from error
    for key, graph in graphs.items():
        inputs, outputs = ([f"{key}/{way}/{spec.name}" for spec in specs] for way, specs in _ways(graph))
        model = extractor.extract_model(inputs, outputs)
        _rename(model, key, graph)
        onnx.checker.check_model(model)
        onnx.save_model(model, folder / f"{key}.onnx")


def _ways(graph: PolicyGraph) -> tuple[tuple[str, tuple[TensorSpec, ...]], ...]:
    return ("in", graph.inputs), ("out", graph.outputs)


def _rename(model: onnx.ModelProto, key: str, graph: PolicyGraph) -> None:
    """Give the tensors of an extracted program their own names, and the letters of its shapes."""
    own = {f"{key}/{way}/{spec.name}": spec for way, specs in _ways(graph) for spec in specs}
    for node in model.graph.node:
        for tensors in (node.input, node.output):
            for k, name in enumerate(tensors):
                if name in own:
                    tensors[k] = own[name].name
    for value in (*model.graph.input, *model.graph.output):
        spec = own[value.name]
        value.name = spec.name
        for dimension, size in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
            if isinstance(size, str):
                dimension.dim_param = size
    del model.graph.value_info[:]


def _spec(name: str, shape: Shape, sizes: Sizes) -> TensorSpec:
    fixed = {"N": sizes.N, "w": sizes.w}
    return TensorSpec(name=name, dtype="fp32", shape=tuple(fixed.get(d, d) if isinstance(d, str) else d for d in shape))


class _Together(torch.nn.Module):
    """Several programs side by side, over one flat list of tensors.

    What a program is given and doesn't read is zeros here, and is gone from the graph with all that is made of it.
    """

    def __init__(self, graphs: Sequence[PolicyGraph]) -> None:
        super().__init__()
        self._graphs = graphs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found: list[torch.Tensor] = []
        rest = list(tensors)
        for graph in self._graphs:
            given = {spec.name: rest.pop(0) for spec in graph.inputs}
            rows = {
                str(spec.shape[0]): tensor
                for spec, tensor in zip(graph.inputs, given.values(), strict=True)
                if spec.shape and isinstance(spec.shape[0], str)
            }
            for name, shape in graph.program.inputs.items():
                if name not in given:
                    given[name] = _zeros(_spec(name, shape, graph.sizes), rows)
            made = graph.program.compute(given)
            found += [made[spec.name.removesuffix(NEW)] for spec in graph.outputs]
        return tuple(found)


def _zeros(spec: TensorSpec, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
    letters = {str(d): rows[d].shape[0] for d in spec.shape if isinstance(d, str)}
    return torch.zeros(spec.sized(letters))


def _traced(graphs: Sequence[PolicyGraph]) -> torch.export.ExportedProgram:
    """The programs side by side. Each has letters of its own, or one would take its sizes from another's tensors."""
    sizes = graphs[0].sizes
    most = {"B": max(2, sizes.B), "b": max(2, sizes.b)}  # a traced size of 1 would be taken for a constant
    example: list[torch.Tensor] = []
    shapes: list[dict[int, Any]] = []
    for k, graph in enumerate(graphs):
        letters = {letter: torch.export.Dim(f"{letter}{k}", min=1, max=size) for letter, size in most.items()}
        example += _example(graph.inputs)
        shapes += [{axis: letters[d] for axis, d in enumerate(s.shape) if d in letters} for s in graph.inputs]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(_Together(graphs), tuple(example), dynamic_shapes=(tuple(shapes),), strict=False)
    except Exception as error:
        named = ", ".join(graph.name for graph in graphs)
        raise BuildError(f"torch.export could not trace the programs {named}: {first_line(error)}") from error


def _example(specs: Iterable[TensorSpec]) -> list[torch.Tensor]:
    return [torch.rand(spec.sized({"B": 2, "b": 2})) for spec in specs]


@dataclass(frozen=True)
class _Whole:
    """A program traced with all it is given: what it does, and which inputs every output depends on."""

    code: str
    reads: Mapping[str, set[str]]

    @classmethod
    def of(cls, program: Program, sizes: Sizes) -> _Whole:
        inputs = tuple(_spec(name, shape, sizes) for name, shape in program.inputs.items())

        def compute(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            made = program.compute(dict(zip(program.inputs, tensors, strict=True)))
            return tuple(made[name] for name in program.outputs)

        with torch.no_grad():
            traced = make_fx(compute)(*_example(inputs))
        constants = {name: value.tolist() for name, value in traced.named_buffers()}
        places = [node for node in traced.graph.nodes if node.op == "placeholder"]
        named = dict(zip(places, program.inputs, strict=True))
        ends = next(node for node in traced.graph.nodes if node.op == "output").args[0]
        reads = {
            output: {named[node] for node in _ancestors(end) if node in named}
            for output, end in zip(program.outputs, ends, strict=True)
        }
        return cls(f"{traced.code}\n{constants}", reads)


def _ancestors(node: torch.fx.Node) -> Iterable[torch.fx.Node]:
    seen, waiting = set(), [node]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += one.all_input_nodes
    return seen
