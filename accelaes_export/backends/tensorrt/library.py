"""One of the two TensorRT libraries, imported, with its logger and what that collects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from accelaes_export.backends.tensorrt.flavour import Flavour
from accelaes_export.backends.tensorrt.messages import Messages


@dataclass(frozen=True)
class Library:
    """What a build and a session need of TensorRT.

    Attributes:
        trt: the Python module.
        flavour: which of the two it is.
        logger: the process's TensorRT logger.
        messages: what that logger collects.
    """

    trt: Any
    flavour: Flavour
    logger: Any = None
    messages: Messages = field(default_factory=Messages)
