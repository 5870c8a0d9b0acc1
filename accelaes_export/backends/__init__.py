"""Engine formats. Importing this package loads neither torch, ONNX nor TensorRT."""

from __future__ import annotations

from accelaes_export.backends.registry import backend, names, names_with

__all__ = ["backend", "names", "names_with"]
