"""Weights beside an engine that has them as inputs: one safetensors file, bound to every context when it is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from accelaes_export.backends.onnx_files import read_graph
from accelaes_export.errors import BundleError

if TYPE_CHECKING:
    import onnx
    import torch

WEIGHTS_FILE = "weights.safetensors"
_DTYPES = {1: "F32", 10: "F16", 16: "BF16"}  # onnx.TensorProto's numbers
_PIECE = 1 << 26


def write_weights(model: Path, names: Collection[str], path: Path) -> None:
    """Copy the external weights `names` of an ONNX model into a safetensors file, piece by piece."""
    tensors = [tensor for tensor in read_graph(model).graph.initializer if tensor.name in names]
    header, at = {}, 0
    for tensor in tensors:
        length = _external(tensor)[2]
        header[tensor.name] = {
            "dtype": _DTYPES[tensor.data_type],
            "shape": list(tensor.dims),
            "data_offsets": [at, at + length],
        }
        at += length
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    with path.open("wb") as target:
        target.write(len(written).to_bytes(8, "little") + written)
        for tensor in tensors:
            location, offset, length = _external(tensor)
            with (model.parent / location).open("rb") as source:
                for piece in _pieces(source, offset, length):
                    target.write(piece)


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


def load_weights(path: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """Every weight on the device.

    Raises:
        BundleError: no such file, or not a whole one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BundleError(f"The weights {path} can't be read ({error}); build the bundle again.") from error
