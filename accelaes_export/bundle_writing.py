"""Writing a bundle so that its folder holds either the old bundle or the new one, whole, whatever happens.

Files go to a temporary sibling `.NAME.writing-PID`, are hashed and flushed there, and the sibling is renamed.
An interrupted build leaves at most such a sibling, which the next `build_lock` on the same folder removes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from accelaes_export.bundle import MANIFEST, Bundle, is_plain_name, read_manifest
from accelaes_export.errors import BuildError, BundleError, InputError
from accelaes_export.hashing import sha256_of
from accelaes_export.manifest import FileRecord, Manifest

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def check_destination(destination: str | Path, build_key: str | None = None, *, force: bool = False) -> Bundle | None:
    """The bundle that stands at `destination` and may be replaced, or None where nothing stands there.

    Called before a long build as well as before writing. A bundle may be replaced by one of the same
    `build_key`, or by any with `force`; an empty folder counts as nothing.

    Raises:
        InputError: something else stands there: a file, a folder that isn't a bundle or holds files of yours
            beside one, or another bundle without `force`. Nothing is touched.
    """
    folder = Path(destination)
    try:
        if not folder.exists():
            return None
        if not folder.is_dir():
            raise InputError(f"{folder} is a file; choose another folder with -o.")
        present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        if not any(folder.iterdir()):
            return None
    except OSError as error:
        raise InputError(f"{folder} can't be read: {error.strerror or error}; choose another with -o.") from error
    try:
        manifest = read_manifest(folder)
    except BundleError as error:
        raise InputError(
            f"{folder} exists and is not a bundle this release can read, so it is left alone; "
            f"choose another folder with -o, or remove it yourself. ({error})"
        ) from error
    strange = sorted(present - set(manifest.files) - {MANIFEST})
    if strange:
        raise InputError(
            f"{folder} holds {strange[0]}, which is not the bundle's; move it away, or choose another folder."
        )
    if manifest.build_key != build_key and not force:
        raise InputError(
            f"{folder} holds another bundle ({manifest.model}, {manifest.backend.name}, {manifest.contract.dtype}); "
            "choose another folder with -o, or replace it with --force."
        )
    return Bundle(folder, manifest)


def write_bundle(
    destination: str | Path, manifest: Manifest, files: Mapping[str, Path], *, force: bool = False
) -> Bundle:
    """Write `files` and `manifest` as the bundle at `destination`, at once or not at all.

    Args:
        destination: the bundle's folder; see `check_destination` for what may stand there already.
        manifest: everything but its `files`, which are recorded here.
        files: name in the bundle to source path. Sources are hard-linked, or copied where that can't be; don't
            write into them afterwards.
        force: replace a bundle of another build.

    Raises:
        InputError: the destination can't be replaced or written to.
        BuildError: the disk is full; the message has the sizes, and the destination is as it was.
    """
    target = Path(os.path.realpath(destination))
    check_destination(target, manifest.build_key, force=force)
    for name in files:
        if not is_plain_name(name):
            raise ValueError(f"{name!r} can't be a file of a bundle: give a relative path below its folder")
    temporary = target.with_name(f"{_prefix(target)}writing-{os.getpid()}")
    size = sum(source.stat().st_size for source in files.values())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        temporary.mkdir()
        records = {name: _place(source, temporary / name) for name, source in sorted(files.items())}
        complete = manifest.model_copy(update={"files": records})
        _write_text(temporary / MANIFEST, complete.model_dump_json(indent=2) + "\n")
        for folder in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
            _flush(folder)
        _swap(temporary, target)
    except OSError as error:
        if error.errno in _NO_SPACE:
            free = shutil.disk_usage(target.parent).free
            raise BuildError(
                f"The disk is full: the bundle needs {size / 1e9:.2f} GB and {free / 1e9:.2f} GB are free in "
                f"{target.parent}; {target.name} is as it was before."
            ) from error
        raise InputError(
            f"{target} can't be written: {error.strerror or error}; choose another folder with -o."
        ) from error
    finally:
        _remove(temporary)
    return Bundle(Path(destination), complete)


@contextmanager
def build_lock(destination: str | Path) -> Iterator[None]:
    """Hold the right to build into `destination`, against every other process.

    Raises BuildError at once where another process holds it. The operating system drops the lock with its
    process, so a lock file left by a killed build blocks nobody; what that build left half-written is removed.
    """
    target = Path(os.path.realpath(destination))
    path = target.with_name(f"{_prefix(target)}lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = _locked(path, target)
    except OSError as error:
        raise InputError(
            f"{target} can't be written: {error.strerror or error}; choose another folder with -o."
        ) from error
    try:
        _clear_leftovers(target)
        yield
    finally:
        path.unlink(missing_ok=True)  # while still locked, so that nobody else's file is removed
        os.close(handle)


def _locked(path: Path, target: Path) -> int:
    """An open, locked descriptor of the lock file that is at `path` now, with our process id in it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have unlinked the file between our open and our lock.
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                os.ftruncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
                return handle
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise BuildError(
                f"Another build (process {holder}) is writing {target}; wait for it, or choose another folder with -o."
            ) from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _clear_leftovers(target: Path) -> None:
    """Undo what a build that was killed while writing has left beside `target`."""
    for old in target.parent.glob(f"{_prefix(target)}old-*"):
        if target.exists():
            _remove(old)
        else:  # killed between the two renames
            old.rename(target)
    for temporary in target.parent.glob(f"{_prefix(target)}writing-*"):
        _remove(temporary)


def _prefix(target: Path) -> str:
    """What the hidden siblings of a bundle begin with."""
    return f".{target.name}."


def _place(source: Path, path: Path) -> FileRecord:
    """Bring `source` to `path` without copying it where that is possible, on disk for good, and hash it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve(strict=True)
    try:
        path.hardlink_to(real)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise
        shutil.copyfile(real, path)
    _flush(path)
    return FileRecord(sha256=sha256_of(path), size=path.stat().st_size)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(temporary: Path, target: Path) -> None:
    """Put `temporary` at `target`; a bundle that stood there goes, or stays if anything stops us in between."""
    old = target.with_name(f"{_prefix(target)}old-{os.getpid()}")
    _remove(old)
    if target.exists() and any(target.iterdir()):
        try:
            target.rename(old)
            temporary.rename(target)
        except BaseException:
            if old.exists() and not target.exists():
                old.rename(target)
            raise
    else:
        temporary.rename(target)
    _flush(target.parent)
    _remove(old)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
