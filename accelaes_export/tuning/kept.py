"""What of a tuning is done already, in a folder beside the file it will be: an interrupted one goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import FiniteFloat, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from accelaes_export.contract.tuning import TunedPlan
from accelaes_export.files.reading import read_given
from accelaes_export.files.writing import whole_file, write_whole
from accelaes_export.tuning.recording import Conditions

KEY_LENGTH = 16
_AS_DISTANCES: TypeAdapter[dict[str, FiniteFloat]] = TypeAdapter(dict[str, FiniteFloat])


def key_of(*parts: Any) -> str:
    """Hex key of what a part depends on: plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:KEY_LENGTH]


def versions() -> dict[str, str]:
    """Of the packages that what is learned depends on."""
    return {name: metadata.version(name) for name in ("accelaes-export", "torch", "diffusers")}


def fingerprint(conditions: Sequence[Conditions]) -> str:
    """Hex digest of pictures' beginnings: noise and conditioning."""
    digest = hashlib.sha256()
    for own in conditions:
        for name, tensor in {"": own.latents, **own.conditioning}.items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Kept:
    """Finished parts by name and key. Files are written whole, and one that can't be read is made anew.

    Args:
        folder: made when the first part is done; None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def latents(self, name: str, key: str, make: Callable[[], Sequence[torch.Tensor]]) -> Sequence[torch.Tensor]:
        """Latents after each step of a run."""
        path = self._path(name, key, "safetensors")
        if path is None:
            return make()
        found = _tensors(path)
        if found is not None:
            return [found[str(i)] for i in range(len(found))]
        made = make()
        self._write(path, {str(i): tensor for i, tensor in enumerate(made)})
        return made

    def distances(self, name: str, key: str) -> Distances:
        """Of plans that were tried."""
        return Distances(self._path(name, key, "json"))

    def plan(self, name: str, key: str, make: Callable[[], TunedPlan]) -> TunedPlan:
        """A fitted and measured plan."""
        path = self._path(name, key, "json")
        if path is None:
            return make()
        try:
            return TunedPlan.model_validate_json(read_given(path))
        except (OSError, ValidationError):
            made = make()
            write_whole(self._placed(path), made.model_dump_json())
            return made

    def state(self, name: str, key: str) -> dict[str, torch.Tensor] | None:
        """Tensors by name that `save` wrote; None where there are none."""
        path = self._path(name, key, "safetensors")
        return None if path is None else _tensors(path)

    def save(self, name: str, key: str, state: Mapping[str, torch.Tensor]) -> None:
        """Write down a state as it is now."""
        path = self._path(name, key, "safetensors")
        if path is not None:
            self._write(path, state)

    def _write(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        with whole_file(self._placed(path)) as file:
            file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def _path(self, name: str, key: str, kind: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}-{key}.{kind}"

    @staticmethod
    def _placed(path: Path) -> Path:
        path.parent.mkdir(exist_ok=True)
        return path


def _tensors(path: Path) -> dict[str, torch.Tensor] | None:
    """Of a file, by name; None for one that isn't there or can't be read."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


class Distances:
    """How far plans ended, by their symbols; written down as they come, as each one takes seconds to find out.

    Args:
        path: None: nowhere.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        try:
            self._known = _AS_DISTANCES.validate_json(read_given(path)) if path is not None else {}
        except (OSError, ValidationError):
            self._known = {}

    def of(self, symbols: str, find_out: Callable[[], float]) -> float:
        if symbols not in self._known:
            self._known[symbols] = find_out()
            if self._path is not None:
                self._path.parent.mkdir(exist_ok=True)
                write_whole(self._path, json.dumps(self._known))
        return self._known[symbols]
