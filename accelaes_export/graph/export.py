"""From a focus step to one ONNX file: torch.export, then the dynamo exporter, then the attention function."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.fx.config

from accelaes_export.contract.tensors import GraphContract, TensorSpec
from accelaes_export.errors import BuildError, first_line
from accelaes_export.graph import streaming
from accelaes_export.graph.focus_step import FocusStep, as_arguments, example_inputs
from accelaes_export.graph.function import OPSET, finish_model, translate, translate_sort

TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.accelaes.sparse_query_attention.default: translate,
    torch.ops.aten.sort.stable: translate_sort,
}
"""Of operators that torch.onnx doesn't know."""
ONNX_NAME = "focus_step.onnx"
EXTERNAL_FROM = 2**28  # bytes of weights; a protobuf message may have 2**31, and is copied a few times on its way
TEXT_LIMIT = 4096  # longest text an exported graph takes; tables of the supported families end far below


def trace(step: FocusStep, n: int | None = None) -> torch.export.ExportedProgram:
    """torch.export of the focus step, on the device it is on, with B, n, m and M dynamic.

    Args:
        n: focus tokens of the only bucket the program shall take; None leaves n and m dynamic.

    Raises:
        BuildError: tracing failed, or an input was merged or lost on the way.
    """
    contract, Dim = step.contract, torch.export.Dim
    rows = max(2, contract.rows)  # an engine of one row has the graph of two
    letters = {"B": Dim("B", min=1, max=rows), "M": Dim("M", min=1, max=TEXT_LIMIT)}
    if n is None:
        letters |= {"n": Dim("n", min=1, max=contract.tokens), "m": Dim("m", min=0, max=contract.tokens)}
    letters["a"] = Dim("a", min=0, max=contract.tokens if n is None else n)
    parts = () if contract.own_parts is None else contract.own_parts.labels
    for name in (f"{letter}.{label}" for label in parts for letter in "nk"):
        letters[name] = Dim(name.replace(".", "_"), min=0, max=contract.tokens)
    shapes = {
        spec.name: {axis: letters[d] for axis, d in enumerate(spec.shape) if d in letters} for spec in contract.inputs
    }
    # A traced size of 0 or 1 would be taken for a constant: every dynamic size of the example lies above.
    # The background, whose cache is the largest input, is as small as that allows.
    size = max(2, contract.tokens - 2) if n is None else n
    example = example_inputs(contract, n=size, B=rows, device=next(step.parameters()).device)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(
                step,
                (as_arguments(contract, example),),
                dynamic_shapes=(as_arguments(contract, shapes),),
                strict=False,
            )
    except Exception as error:
        raise BuildError(f"torch.export could not trace the focus step: {first_line(error)}") from error
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    lost = [name for name in program.graph_signature.user_inputs if name not in used]
    if len(program.graph_signature.user_inputs) != len(contract.inputs) or lost:
        raise BuildError(
            f"The traced focus step uses {len(program.graph_signature.user_inputs) - len(lost)} of "
            f"{len(contract.inputs)} inputs; an input the graph doesn't read can't be part of the contract."
        )
    return program


def save_onnx(
    program: torch.export.ExportedProgram,
    contract: GraphContract,
    folder: Path,
    read: Callable[[str], torch.Tensor | None] | None = None,
    *,
    external: bool = False,
) -> Path:
    """Write `focus_step.onnx` (and, over 256 MB, its external data) into an existing folder; returns its path.

    Args:
        read: the weights that a hollow model was traced without, by their names in the program; each is read when
            it is written, so no more than one is in memory.
        external: keep weights beside the file at any size.

    Raises:
        BuildError: the exporter failed.
    """
    path = folder / ONNX_NAME
    write_onnx(program, contract.inputs, contract.outputs, path, read, external=external)
    finish_model(path, contract)
    return path


def write_onnx(
    program: torch.export.ExportedProgram,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    path: Path,
    read: Callable[[str], torch.Tensor | None] | None = None,
    *,
    external: bool = False,
    fuse: bool = True,
) -> None:
    """Write a program as ONNX; see `save_onnx`, which does so with the focus step, and `streaming.optimize`."""
    try:
        with torch.no_grad(), quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in outputs],
                custom_translation_table=TRANSLATIONS,
                optimize=False,
                verbose=False,
            )
            assert exported is not None
            streaming.optimize(exported.model, fuse=fuse)
    except Exception as error:
        raise BuildError(f"The ONNX exporter failed: {first_line(error)}") from error
    if read is not None:
        streaming.fill(exported.model, read)
    exported.save(str(path), external_data=external or weight_bytes(program) > EXTERNAL_FROM)
    for value in exported.model.graph.initializers.values():
        value.const_value = None  # the exporter's caches keep the graph, and would keep its gigabytes with it


def weight_bytes(program: torch.export.ExportedProgram) -> int:
    """Bytes of all weights, those that aren't there included."""
    return sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns about operators of packages that aren't installed and about its own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    # Stack traces of every node take a fifth of an export's time, and nobody reads them. (torch 2.9 can't leave them.)
    kept = getattr(torch.fx.config, "do_not_emit_stack_traces", False)
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        torch.fx.config.do_not_emit_stack_traces = kept
