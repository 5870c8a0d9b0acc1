"""The one way to a user's file: asked for before the work, and written at once or not at all afterwards.

Whatever is wrong is a sentence that names the file and the reason: InputError where the path can't be right, WriteError
where the disk or a limit stops us.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from accelaes_export.errors import InputError, WriteError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROBE = bytes(4096)  # a block: less fits into a full disk's last one


def check_writable(*paths: Path | None) -> None:
    """Find out whether files can be written at these paths, without touching what is there; None is no file.

    Raises:
        InputError: a folder, a pipe nobody reads, a place where no file may be written, or two files at one.
        WriteError: the disk is full.
    """
    places: dict[Path, Path] = {}
    for path in paths:
        if path is None:
            continue
        _check_one(path)
        place = _place(path)
        if place in places and not _is_special(path):
            raise InputError(f"{path} is to be written twice; give each file a name of its own.")
        places[place] = path


def _check_one(path: Path) -> None:
    with _named(path):
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file to write.")
        if _is_special(path):
            os.close(_opened(path))
            return
        place = _place(path)
        ancestor = next(parent for parent in place.parents if parent.exists())
        if not ancestor.is_dir():
            raise InputError(f"{path} can't be written: {ancestor} is no folder; give another path.")
        if place.exists() and not os.access(place, os.W_OK):
            raise InputError(f"{path} can't be written: the file there is read-only; give another path.")
        with tempfile.NamedTemporaryFile(prefix=".accelaes-", dir=ancestor) as probe:
            probe.write(_PROBE)
            probe.flush()
        if len(os.fsencode(place.name)) > os.pathconf(ancestor, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` when the block ends without an error; until then what was there stays.

    Folders are made as needed. Symbolic links are followed, and pipes and devices are written to as they are.

    Raises:
        InputError, WriteError: as `check_writable`.
    """
    with _named(path):
        if _is_special(path):
            with os.fdopen(_opened(path), "wb") as file:
                yield file
            return
        place = _place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        # Not by tempfile, whose files are their owner's alone.
        temporary = place.with_name(f".accelaes-{uuid.uuid4().hex}")
        try:
            with temporary.open("xb") as file:
                yield file
            temporary.replace(place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_whole(path: Path, text: str) -> None:
    """Write `text` in UTF-8 as `whole_file` does."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


def append_line(path: Path, line: str) -> None:
    """Add a line in UTF-8, on disk for good; raises as `whole_file`."""
    with _named(path), path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in NO_SPACE:
            what = "a limit on file sizes (ulimit -f)" if error.errno == errno.EFBIG else "the disk is full"
            raise WriteError(f"{path} can't be written: {what}; free some space, or give another path.") from error
        if error.errno == errno.ENXIO:
            reason = "nobody reads this pipe"
        raise InputError(f"{path} can't be written: {reason}; give another path.") from error
    except ValueError as error:
        if "null byte" not in str(error):
            raise
        raise InputError(f"{str(path)!r} is no path of a file; give another.") from error


def _place(path: Path) -> Path:
    """Where a path leads, through symbolic links."""
    return Path(os.path.realpath(path))


def _is_special(path: Path) -> bool:
    """Whether a pipe, a device or a socket is there."""
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = path.stat().st_mode
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return False


def _opened(path: Path) -> int:
    """A descriptor to write to; a pipe that nobody reads isn't waited for."""
    handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(handle, True)
    return handle
