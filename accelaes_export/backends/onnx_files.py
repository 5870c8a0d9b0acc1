"""ONNX models as files: the graph without its weights, the files the weights lie in, and a copy elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from accelaes_export.errors import BuildError, InputError, MissingComponentError

if TYPE_CHECKING:
    import onnx


def read_graph(path: Path) -> onnx.ModelProto:
    """The model at `path` with its external weights left on disk, however large they are."""
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingComponentError(
            "Compiling needs the onnx package, which isn't installed: pip install onnx."
        ) from error
    if not path.is_file():
        raise InputError(f"There is no ONNX file at {path}; export the model first.")
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise InputError(f"{path} is not an ONNX model ({error}); export it again.") from error


def external_files(model: onnx.ModelProto) -> tuple[str, ...]:
    """The weight files `model` refers to, relative to its own folder, each once.

    Raises InputError for a location outside that folder: a model must not pull in arbitrary files.
    """
    found: dict[str, None] = {}
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key != "location":
                continue
            location = PurePosixPath(entry.value)
            if location.is_absolute() or ".." in location.parts:
                raise InputError(
                    f"The ONNX model keeps {tensor.name!r} in {entry.value!r}; weights must lie beside the model."
                )
            found[entry.value] = None
    return tuple(found)


def copy_model(path: Path, destination: Path) -> tuple[str, ...]:
    """Check the model at `path` and copy it with its weights into `destination`; returns the relative file names.

    The kernel copies file to file, so gigabytes of weights never pass through this process. They are not
    hard-linked: onnx refuses weights with a second link, and whoever rewrote one would rewrite the other.
    """
    import onnx

    files = (path.name, *external_files(read_graph(path)))
    for name in files:
        if not (path.parent / name).is_file():
            raise InputError(f"The ONNX model {path.name} needs {name} beside it, and {path.parent} has no such file.")
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise BuildError(f"onnx finds {path} invalid: {str(error).strip().splitlines()[0]}") from error
    for name in files:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / name, destination / name)
    return files


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: object) -> Iterator[onnx.TensorProto]:
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)
