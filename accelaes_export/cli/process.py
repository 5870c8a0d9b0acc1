"""What a command line is started in: streams of any encoding that may be closed, limits, a folder that may be gone."""

from __future__ import annotations

import codecs
import errno
import io
import os
import resource
import sys
from typing import Any

from accelaes_export.errors import InputError, WriteError

_LEAST_FILES = 64  # that torch, an engine and a checkpoint's shards have open at once
_IN_ASCII = {"θ": "theta", "α": "alpha", "σ": "sigma", "Δ": "Delta", "×": "x", "…": "...", "·": "-", "–": "-", "—": "-"}


def require_process() -> None:
    """Refuse what nothing could be done in.

    Raises:
        InputError: the working folder was removed, or too few files may be open.
    """
    try:
        os.getcwd()  # noqa: PTH109 (Path.cwd is the same, and this says what is asked)
    except OSError as error:
        raise InputError(
            f"The working folder can't be used ({error.strerror}), as one that was removed; cd to another."
        ) from error
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < _LEAST_FILES:
        raise InputError(f"Only {files} files may be open at once, and {_LEAST_FILES} are needed: ulimit -n 1024.")


class Streams:
    """Standard output and error that take every character and never raise.

    A stream that was closed, or whose reader went away, takes everything from then on and drops it: the work goes on,
    as its files are what it is for. Any other failure, of a full disk above all, is kept for `check`.

    Only the process's own streams are replaced; tests and notebooks have theirs.
    """

    def __init__(self) -> None:
        self._output: _Tolerant | None = None

    def __enter__(self) -> Streams:
        codecs.register_error("accelaes", _spelled_out)
        self._before = sys.stdout, sys.stderr
        sys.stdout, self._output = _tolerant(sys.stdout, sys.__stdout__)
        sys.stderr, _ = _tolerant(sys.stderr, sys.__stderr__)
        return self

    def check(self) -> None:
        """WriteError where something of standard output was lost that somebody may have wanted."""
        if self._output is None:
            return
        sys.stdout.flush()
        if self._output.failure is not None and self._output.failure.errno != errno.EPIPE:
            raise WriteError(f"Standard output can't be written: {self._output.failure.strerror}.")

    def __exit__(self, *_: object) -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = self._before


class _Tolerant(io.RawIOBase):
    """A file descriptor that takes everything, and remembers the first failure."""

    def __init__(self, handle: int | None) -> None:
        self._handle = handle
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._handle is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._handle

    def isatty(self) -> bool:
        return self._handle is not None and os.isatty(self._handle)

    def write(self, data: Any) -> int:
        size = len(data)
        if self._handle is not None and self.failure is None:
            try:
                return os.write(self._handle, data)
            except OSError as error:
                self.failure = error
        return size


def _tolerant(stream: Any, original: Any) -> tuple[Any, _Tolerant | None]:
    if stream is not original:
        return stream, None
    handle, encoding = None, "utf-8"
    if stream is not None:
        stream.flush()
        handle, encoding = stream.fileno(), stream.encoding
    raw = _Tolerant(handle)
    lines = raw.isatty() or stream is sys.__stderr__
    made = io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors="accelaes", line_buffering=lines)
    return made, raw


def _spelled_out(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters an encoding doesn't have: the field's letters by name, others by number."""
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    escaped = (_IN_ASCII.get(character) or character.encode("ascii", "backslashreplace").decode() for character in lost)
    return "".join(escaped), error.end
