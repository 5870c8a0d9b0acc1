"""SHA-256 of files, read in chunks so that a file of many gigabytes costs no memory."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

_CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of the file at `path`; OSError for what isn't a regular file, and might never end."""
    digest = hashlib.sha256()
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
