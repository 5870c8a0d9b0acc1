"""Diffusion transformers as compiled engines that compute focus tokens and reuse the background.

    import accelaes_export as ax

    bundle = ax.build("path-or-hub-id", model="sd3", backend="onnxruntime", output="engines/built/mine")
    bundle = ax.open("engines/built/mine")
    ax.accelerate(pipe, bundle, policy=ax.policies.AccelAes(skip_ratio=0.5))

Public names are loaded when they are first used, so that the import itself needs neither torch nor onnx.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "AccelAesError",
    "BuildError",
    "Bundle",
    "BundleError",
    "InputError",
    "MissingComponentError",
    "__version__",
    "accelerate",
    "build",
    "errors",
    "load_pipeline",
    "open",
    "policies",
    "restore",
    "words",
]

if TYPE_CHECKING:
    from accelaes_export import errors, policies
    from accelaes_export.building.builder import build
    from accelaes_export.bundle.reading import Bundle
    from accelaes_export.bundle.reading import open_bundle as open
    from accelaes_export.errors import AccelAesError, BuildError, BundleError, InputError, MissingComponentError
    from accelaes_export.runtime.generate import load_pipeline
    from accelaes_export.runtime.pipeline import accelerate, restore, words

_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 (pathlib would be most of this import)
if not os.path.isdir(os.path.join(_HERE, "plugins")):  # noqa: PTH112, PTH118
    # A checkout that isn't installed: plugins/ and engines/ lie beside the package, where setup.py finds them too.
    __path__.append(os.path.dirname(_HERE))  # noqa: PTH120

_MODULES = frozenset({"errors", "policies"})
_HOMES = {
    "AccelAesError": ("errors", "AccelAesError"),
    "BuildError": ("errors", "BuildError"),
    "Bundle": ("bundle.reading", "Bundle"),
    "BundleError": ("errors", "BundleError"),
    "InputError": ("errors", "InputError"),
    "MissingComponentError": ("errors", "MissingComponentError"),
    "accelerate": ("runtime.pipeline", "accelerate"),
    "build": ("building.builder", "build"),
    "load_pipeline": ("runtime.generate", "load_pipeline"),
    "open": ("bundle.reading", "open_bundle"),
    "restore": ("runtime.pipeline", "restore"),
    "words": ("runtime.pipeline", "words"),
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
