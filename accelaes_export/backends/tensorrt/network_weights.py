"""Weights that are a TensorRT engine's inputs: out of the ONNX model's external data, into a file beside the engine."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from accelaes_export.backends.onnx_files import read_graph
from accelaes_export.backends.weights_file import Element, Weight, write_weights_file

if TYPE_CHECKING:
    import onnx

_ELEMENTS: dict[int, Element] = {1: "F32", 10: "F16", 16: "BF16"}  # onnx.TensorProto's numbers
_PIECE = 1 << 26


def write_weights(model: Path, names: Collection[str], path: Path) -> None:
    """Copy the external weights `names` of an ONNX model into a safetensors file, piece by piece."""
    tensors = {tensor.name: tensor for tensor in read_graph(model).graph.initializer if tensor.name in names}
    weights = [
        Weight(name, _ELEMENTS[tensor.data_type], tuple(tensor.dims), _external(tensor)[2])
        for name, tensor in tensors.items()
    ]

    def pieces(weight: Weight) -> Iterator[bytes]:
        location, offset, length = _external(tensors[weight.name])
        with (model.parent / location).open("rb") as source:
            yield from _pieces(source, offset, length)

    write_weights_file(path, weights, pieces)


def _external(tensor: onnx.TensorProto) -> tuple[str, int, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return entries["location"], int(entries.get("offset", 0)), int(entries["length"])


def _pieces(source: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    source.seek(offset)
    while length:
        piece = source.read(min(_PIECE, length))
        if not piece:
            raise OSError(f"{source.name} ends {length} bytes early")
        length -= len(piece)
        yield piece
    # The kernel would keep what was read and written once; gigabytes of it push out what is needed.
    os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
