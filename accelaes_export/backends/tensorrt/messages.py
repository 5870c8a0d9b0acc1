"""TensorRT reports through a logger object; this keeps its last errors, so that ours can quote them."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any


class Messages:
    """Errors TensorRT logged since `clear`, and everything else forwarded to Python's logging at debug level."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=20)
        self._logger = logging.getLogger("accelaes_export.backends.tensorrt")

    def add(self, text: str, *, error: bool) -> None:
        """Called from TensorRT's own threads."""
        self._logger.debug("%s", text)
        if error:
            self._errors.append(text)

    def clear(self) -> None:
        self._errors.clear()

    def quote(self) -> str:
        """The errors as one line, or a word that there were none."""
        return "; ".join(dict.fromkeys(one_line(text) for text in self._errors)) or "it gave no reason"


def one_line(text: str) -> str:
    """A message as part of a sentence of ours."""
    return " ".join(text.split()).rstrip(".")


def tensorrt_logger(trt: Any, messages: Messages) -> Any:
    """An `ILogger` that writes into `messages`. TensorRT keeps using the first one a process makes: never drop it."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            messages.add(msg, error=severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR))

    return Logger()
