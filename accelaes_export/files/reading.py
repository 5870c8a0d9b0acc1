"""Reading files that somebody handed us: never waiting for a pipe, never without an end."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from accelaes_export.errors import InputError

_MOST = 256 * 2**20  # bytes of a text; the largest there is, a fingerprint, has a few megabytes


def read_given(path: Path, *, regular: bool = True) -> bytes:
    """What is in a file.

    Args:
        regular: refuse anything but a regular file. Otherwise a pipe is read to its end; one that nobody writes to has
            nothing in it.

    Raises:
        OSError: it isn't there, or can't be read; also what isn't a regular file, or has more than 256 MB.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if regular and not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        os.set_blocking(handle, True)
        found = file.read(_MOST + 1)
    if len(found) > _MOST:
        raise OSError(errno.EFBIG, f"it has more than {_MOST >> 20} MB", str(path))
    return found


def parse_json(data: bytes) -> Any:
    """JSON as the standard has it: in UTF-8, with finite numbers, and texts that can be written again.

    Raises:
        ValueError: anything else, also what is nested too deep.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        found = json.loads(data.decode("utf-8"), parse_constant=refuse)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair can be read, but not written
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return found


def require_plain_files(folder: Path) -> None:
    """InputError where a folder has anything but files and folders in it: reading a pipe would wait forever."""
    for path in folder.rglob("*"):
        if not path.is_dir() and not path.is_file():
            what = "a link to nothing" if path.is_symlink() and not path.exists() else "not a regular file"
            raise InputError(f"{path} is {what}; take it away, or copy the checkpoint again.")
