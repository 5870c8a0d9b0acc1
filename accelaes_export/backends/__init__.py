"""Engine formats by name. Importing this package loads neither torch, ONNX nor TensorRT."""

from __future__ import annotations

from functools import cache

from accelaes_export.backends.base import (
    Availability,
    Backend,
    CompiledEngine,
    CompileOptions,
    CompileRequest,
    FocusProgram,
    Progress,
    Session,
)
from accelaes_export.errors import InputError

__all__ = [
    "Availability",
    "Backend",
    "CompileOptions",
    "CompileRequest",
    "CompiledEngine",
    "FocusProgram",
    "Progress",
    "Session",
    "backend",
    "names",
]


def names() -> tuple[str, ...]:
    """Every backend's name, the default first."""
    return ("onnxruntime", "aoti", "tensorrt-rtx", "tensorrt")


@cache
def backend(name: str) -> Backend:
    """The backend called `name`, one object a process; InputError lists the names there are."""
    if name == "onnxruntime":
        from accelaes_export.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend()
    if name == "aoti":
        from accelaes_export.backends.aoti import AotiBackend

        return AotiBackend()
    if name in ("tensorrt-rtx", "tensorrt"):
        from accelaes_export.backends.tensorrt import TensorRTBackend
        from accelaes_export.backends.tensorrt.flavour import RTX, STANDARD

        return TensorRTBackend(RTX if name == "tensorrt-rtx" else STANDARD)
    raise InputError(f"There is no backend {name!r}; choose one of {', '.join(names())}.")
