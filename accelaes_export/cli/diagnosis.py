"""What this machine can do: backends, GPUs and versions, for `accelaes-export doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from accelaes_export import backends
from accelaes_export.backends.base import Availability
from accelaes_export.plugins.sparse_query_attention.cubins import default_pack, read_pack
from accelaes_export.plugins.sparse_query_attention.errors import PluginError
from accelaes_export.plugins.sparse_query_attention.registration import LIBRARY_VARIABLE

_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "onnx",
    "onnxscript",
    "numpy",
    "safetensors",
    "pydantic",
)
_SECONDS_FOR_DRIVER = 20


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it; `capability` is the target name, e.g. "sm86"."""

    name: str
    capability: str
    memory_mb: int
    driver: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything `doctor` shows.

    Attributes:
        backends: by name, whether it can build and run here, and if not, why and what mends it.
        gpus: every NVIDIA GPU of this machine.
        gpu_note: why there are none.
        plugin: the state of the attention plugin.
        versions: Python's and the libraries'; "" for one that is missing.
    """

    backends: dict[str, Availability]
    gpus: tuple[Gpu, ...]
    gpu_note: str
    plugin: str
    versions: dict[str, str]

    @property
    def can_run(self) -> bool:
        """Whether at least one backend can run a bundle here."""
        return any(availability.can_run for availability in self.backends.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"can_run": self.can_run}


def diagnose() -> Diagnosis:
    """Look at this machine. Never raises: what can't be found out is part of the answer."""
    gpus, note = _gpus()
    return Diagnosis(
        backends={name: _availability(name) for name in backends.names()},
        gpus=gpus,
        gpu_note=note,
        plugin=_plugin(),
        versions={"python": platform.python_version()} | {package: _version(package) for package in _PACKAGES},
    )


def _availability(name: str) -> Availability:
    try:
        return backends.backend(name).availability()
    except Exception as error:  # a broken installation is a diagnosis too
        return Availability(False, False, reason=f"{type(error).__name__}: {error}", remedy="reinstall the backend")


def _plugin() -> str:
    """What there is of the attention plugin: the library named for it, compiled kernels, or how to get them."""
    library = os.environ.get(LIBRARY_VARIABLE)
    if library:
        return f"{library}{'' if Path(library).is_file() else ', which is not there'}"
    try:
        compiled = read_pack(default_pack())
    except PluginError:
        return "no compiled kernels (accelaes-export plugin build); engines use TensorRT's own attention"
    architectures = sorted({cubin.kernel.architecture for cubin in compiled}, key=lambda name: int(name[2:]))
    return f"in Python, {len(compiled)} kernels for {', '.join(architectures)}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs nvidia-smi lists, and why there are none. Asking it needs no CUDA build of torch."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), "no NVIDIA driver (nvidia-smi not found)"
    query = [program, "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_SECONDS_FOR_DRIVER, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi doesn't answer ({error})"
    if answer.returncode:
        return (), " ".join((answer.stdout or answer.stderr).split()) or f"nvidia-smi ended with {answer.returncode}"
    return tuple(_gpu(line) for line in answer.stdout.splitlines() if line.count(",") == 3), "none"


def _gpu(line: str) -> Gpu:
    name, capability, memory, driver = (part.strip() for part in line.split(","))
    return Gpu(name, f"sm{capability.replace('.', '')}", int(float(memory)) if memory[:1].isdigit() else 0, driver)
