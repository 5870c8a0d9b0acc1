"""What of a tuning is done already, in a folder beside the file it will be: an interrupted one goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
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
        try:
            with safe_open(path, "pt") as file:
                return [file.get_tensor(str(i)) for i in range(len(file.keys()))]
        except (OSError, SafetensorError):
            made = make()
            with whole_file(self._placed(path)) as file:
                file.write(save({str(i): tensor.contiguous() for i, tensor in enumerate(made)}))
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

    def save(self, name: str, key: str, state: Mapping[str, torch.Tensor]) -> None:
        """Write down a state as it is now."""
        path = self._path(name, key, "safetensors")
        if path is not None:
            with whole_file(self._placed(path)) as file:
                file.write(save({own: tensor.contiguous() for own, tensor in state.items()}))

    def resume(self, name: str, key: str, restore: Callable[[dict[str, torch.Tensor]], None]) -> None:
        """Hand a state that was written down to `restore`; nothing where there is none."""
        path = self._path(name, key, "safetensors")
        if path is None or not path.exists():
            return
        try:
            with safe_open(path, "pt") as file:
                state = {own: file.get_tensor(own) for own in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return
        restore(state)

    def _path(self, name: str, key: str, kind: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{name}-{key}.{kind}"

    @staticmethod
    def _placed(path: Path) -> Path:
        path.parent.mkdir(exist_ok=True)
        return path


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
