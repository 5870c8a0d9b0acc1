"""Weights beside an engine: one safetensors file, written piece by piece and read straight onto the device."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from accelaes_export.errors import BundleError

if TYPE_CHECKING:
    import torch

WEIGHTS_FILE = "weights.safetensors"

Element = Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]


@dataclass(frozen=True)
class Weight:
    """One tensor of the file: its name, element type in safetensors' terms, shape, and length in bytes."""

    name: str
    element: Element
    shape: tuple[int, ...]
    length: int


def write_weights_file(
    path: Path, weights: Iterable[Weight], pieces: Callable[[Weight], Iterator[bytes | memoryview]]
) -> None:
    """Write a safetensors file without holding more than a piece of it.

    Args:
        pieces: the bytes of a weight, in order; they add up to its length.
    """
    entries = list(weights)
    header, at = {}, 0
    for weight in entries:
        header[weight.name] = {
            "dtype": weight.element,
            "shape": list(weight.shape),
            "data_offsets": [at, at + weight.length],
        }
        at += weight.length
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    with path.open("wb") as target:
        target.write(len(written).to_bytes(8, "little") + written)
        for weight in entries:
            for piece in pieces(weight):
                target.write(piece)


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
