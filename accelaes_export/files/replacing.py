"""One folder in place of another, so that at every moment one of them is there, whoever is killed in between.

Linux exchanges two names at once (renameat2). Where a file system can't, the old folder is renamed out of the way
first, and whoever looks for it next, to open or to build, brings it back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>
_CANT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def beside(target: Path, what: str, owner: int | str) -> Path:
    """A hidden sibling of `target`, of the process `owner` or of all ("*", to be searched for)."""
    return target.with_name(f".{target.name}.{what}-{owner}")


def put_in_place(folder: Path, target: Path, keep: Path | None = None) -> None:
    """Rename `folder`, which lies beside it, to `target`. A folder that stood there is removed.

    Args:
        keep: what a folder that stood there is renamed to instead.
    """
    if target.exists() and any(target.iterdir()):
        if _exchange(folder, target):
            flush(target.parent)
            _put_away(folder, keep)
            return
        old = beside(target, "old", os.getpid())
        remove(old)
        target.rename(old)
        try:
            folder.rename(target)
        except BaseException:
            if not target.exists():
                old.rename(target)
            raise
        flush(target.parent)
        _put_away(old, keep)
    else:
        folder.rename(target)
        flush(target.parent)


def bring_back(target: Path, *, alone: bool = False) -> None:
    """Where `target` is gone because its replacement was killed between two renames, put what it was in its place.

    One that is going on is left alone, but where the caller knows to be `alone`.
    """
    if target.exists():
        return
    for old in target.parent.glob(beside(target, "old", "*").name):
        if alone or not _is_running(old):
            old.rename(target)
            return


def clear_leftovers(target: Path) -> None:
    """Undo what processes that were killed while writing have left beside `target`. Nobody may be writing there."""
    bring_back(target, alone=True)
    for what in ("old", "writing"):
        for left in target.parent.glob(beside(target, what, "*").name):
            remove(left)


def _is_running(left: Path) -> bool:
    """Whether the process whose number a leftover's name ends with still runs, here."""
    owner = left.name.rpartition("-")[2]
    return owner.isdigit() and int(owner) != os.getpid() and Path(f"/proc/{owner}").exists()


def _put_away(old: Path, keep: Path | None) -> None:
    if keep is None:
        remove(old)
    else:
        old.rename(keep)


def remove(folder: Path) -> None:
    """Remove a folder and everything in it, as far as that can be done."""
    shutil.rmtree(folder, ignore_errors=True)


def flush(path: Path) -> None:
    """Have a file, or a folder's names, on disk for good, where the file system can say so."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places at once; False where that can't be done."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # another system, or a C library of before 2018
        return False
    paths = (ctypes.c_char_p(os.fsencode(path)) for path in (one, other))
    first, second = paths
    if renameat2(_AT_FDCWD, first, _AT_FDCWD, second, ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANT:
        return False
    raise OSError(code, os.strerror(code), str(other))
