"""The engine formats there are. A new one is a module below this package, and a line here."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING

from accelaes_export.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from accelaes_export.backends.base import Backend

_HOMES = {
    "onnxruntime": "onnxruntime.OnnxRuntimeBackend",
    "aoti": "aoti.AotiBackend",
    "tensorrt-rtx": "tensorrt.rtx",
    "tensorrt": "tensorrt.standard",
}
"""What makes each backend: imported when it is asked for, and then importing no engine library by itself."""


def names() -> tuple[str, ...]:
    """Every backend's name, the default first."""
    return tuple(_HOMES)


def names_with(attribute: str) -> tuple[str, ...]:
    """Names of the backends that say `attribute` of themselves, such as `takes_plugin`."""
    return tuple(name for name in names() if getattr(backend(name), attribute))


@cache
def backend(name: str) -> Backend:
    """The backend called `name`, one object a process; InputError lists the names there are."""
    if name not in _HOMES:
        raise InputError(
            f"There is no backend {name!r}; choose one of {', '.join(names())}." + did_you_mean(name, _HOMES)
        )
    module, _, kind = _HOMES[name].rpartition(".")
    made: Backend = getattr(importlib.import_module(f"accelaes_export.backends.{module}"), kind)()
    return made
