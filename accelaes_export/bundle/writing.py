"""Writing a bundle so that its folder holds either the old bundle or the new one, whole, whatever happens.

Files go to a temporary sibling `.NAME.writing-PID`, are hashed and flushed there, and the two change places.
An interrupted build leaves at most such a sibling, which the next `build_lock` on the same folder removes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from accelaes_export.bundle import own_bundles
from accelaes_export.bundle.reading import MANIFEST, Bundle, is_plain_name, manifest_bytes, read_manifest
from accelaes_export.bundle.signing import SIGNATURE, sign
from accelaes_export.contract.manifest import FileRecord, Manifest
from accelaes_export.errors import BuildError, BundleError, InputError
from accelaes_export.files.hashing import sha256_of
from accelaes_export.files.reading import parse_json, read_given
from accelaes_export.files.replacing import beside, bring_back, clear_leftovers, flush, put_in_place, remove
from accelaes_export.files.writing import NO_SPACE, write_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def check_destination(destination: str | Path, build_key: str | None = None, *, force: bool = False) -> Bundle | None:
    """The bundle that stands at `destination` and may be replaced, or None where nothing stands there.

    Called before a long build as well as before writing. A bundle may be replaced by one of the same
    `build_key`, or by any with `force`; an empty folder counts as nothing. With `force`, so does one whose manifest
    can't be read: nobody knows which of its files are yours, so it will be renamed (`kept_as`) and not removed.

    Raises:
        InputError: something else stands there: a file, a folder that isn't a bundle or holds files of yours
            beside one, or another bundle without `force`. Nothing is touched.
    """
    folder = Path(destination)
    try:
        bring_back(Path(os.path.realpath(folder)))
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
        ours = _was_a_bundle(folder)
        if force and ours:
            return None
        remedy = "or move it away with --force" if ours else "or remove it yourself"
        raise InputError(
            f"{folder} exists and is not a bundle this release can read, so it is left alone; "
            f"choose another folder with -o, {remedy}. ({error})"
        ) from error
    strange = sorted(present - set(manifest.files) - {MANIFEST, SIGNATURE})
    if strange:
        raise InputError(
            f"{folder} holds {strange[0]}, which is not the bundle's; move it away, or choose another folder."
        )
    if manifest.build_key != build_key and not force:
        raise InputError(
            f"{folder} holds another bundle ({manifest.model}, {manifest.backend.name}, "
            f"{manifest.geometry.contract.dtype}); "
            "choose another folder with -o, or replace it with --force."
        )
    return Bundle(folder, manifest)


def kept_as(destination: str | Path) -> Path | None:
    """What a folder is renamed to when a bundle takes its place: nothing, but where its manifest can't be read."""
    folder = Path(destination)
    try:
        read_manifest(folder)
    except BundleError:
        if _was_a_bundle(folder):
            names = (folder.with_name(f"{folder.name}.unreadable{k or ''}") for k in itertools.count())
            return next(name for name in names if not name.exists())
    return None


def sign_bundle(bundle: Bundle, key: Ed25519PrivateKey) -> None:
    """Sign a bundle that is there already; raises as `user_files.whole_file`."""
    write_whole(bundle.path / SIGNATURE, sign(key, manifest_bytes(bundle.path)))


def _was_a_bundle(folder: Path) -> bool:
    """Whether a manifest that can't be read may be of ours: damaged, or of another release, but no other program's."""
    try:
        found = parse_json(read_given(folder / MANIFEST))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return isinstance(found, dict) and "schema_version" in found


def write_bundle(
    destination: str | Path,
    manifest: Manifest,
    files: Mapping[str, Path],
    *,
    force: bool = False,
    key: Ed25519PrivateKey | None = None,
) -> Bundle:
    """Write `files` and `manifest` as the bundle at `destination`, at once or not at all.

    Args:
        destination: the bundle's folder; see `check_destination` for what may stand there already.
        manifest: everything but its `files`, which are recorded here.
        files: name in the bundle to source path. Sources are hard-linked, or copied where that can't be; don't
            write into them afterwards.
        force: replace a bundle of another build.
        key: sign it with this one.

    Raises:
        InputError: the destination can't be replaced or written to.
        BuildError: the disk is full; the message has the sizes, and the destination is as it was.
    """
    target = Path(os.path.realpath(destination))
    check_destination(target, manifest.build_key, force=force)
    for name in files:
        if not is_plain_name(name):
            raise ValueError(f"{name!r} can't be a file of a bundle: give a relative path below its folder")
    temporary = beside(target, "writing", os.getpid())
    size = sum(source.stat().st_size for source in files.values())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        temporary.mkdir()
        records = {name: _place(source, temporary / name) for name, source in sorted(files.items())}
        complete = manifest.model_copy(update={"files": records})
        _write_text(temporary / MANIFEST, complete.model_dump_json(indent=2) + "\n")
        _check_readable(temporary)
        written = manifest_bytes(temporary)
        if key is not None:
            _write_text(temporary / SIGNATURE, sign(key, written))
        for folder in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
            flush(folder)
        put_in_place(temporary, target, kept_as(target))
    except OSError as error:
        if error.errno in NO_SPACE:
            free = shutil.disk_usage(target.parent).free
            raise BuildError(
                f"The disk is full: the bundle needs {size / 1e9:.2f} GB and {free / 1e9:.2f} GB are free in "
                f"{target.parent}; {target.name} is as it was before."
            ) from error
        raise InputError(
            f"{target} can't be written: {error.strerror or error}; choose another folder with -o."
        ) from error
    finally:
        remove(temporary)
    own_bundles.remember(written)
    return Bundle(Path(destination), complete, allow_code=True)


@contextmanager
def build_lock(destination: str | Path) -> Iterator[None]:
    """Hold the right to build into `destination`, against every other process.

    The lock's file stays, in `.stages` beside the bundle; the operating system drops the lock with its process, so
    that of a killed build blocks nobody. What that build left half-written is removed.

    Raises:
        BuildError: another process holds it.
        InputError: nothing can be written there.
    """
    target = Path(os.path.realpath(destination))
    try:
        handle = _locked(target)
    except OSError as error:
        raise InputError(
            f"{target} can't be written: {error.strerror or error}; choose another folder with -o."
        ) from error
    try:
        clear_leftovers(target)
        yield
    finally:
        os.close(handle)


def _locked(target: Path) -> int:
    """An open, locked descriptor of the target's lock file, with our process id in it."""
    folder = target.parent / ".stages"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _lock(folder / f"{target.name}.lock", target)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    # A mount without locks: at least the builds of this machine and user keep out of each other's way.
    folder = Path(tempfile.gettempdir()) / f"accelaes-export-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return _lock(folder / f"{hashlib.sha256(os.fsencode(target)).hexdigest()[:32]}.lock", target)


def _lock(path: Path, target: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
    except BlockingIOError as error:
        holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise BuildError(
            f"Another build (process {holder}) is writing {target}; wait for it, or choose another folder with -o."
        ) from error
    except BaseException:
        os.close(handle)
        raise
    return handle


def _place(source: Path, path: Path) -> FileRecord:
    """Bring `source` to `path` without copying it where that is possible, on disk for good, and hash it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    real = source.resolve(strict=True)
    try:
        path.hardlink_to(real)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        shutil.copyfile(real, path)
    flush(path)
    return FileRecord(sha256=sha256_of(path), size=path.stat().st_size)


def _check_readable(temporary: Path) -> None:
    try:
        read_manifest(temporary)
    except BundleError as error:
        raise BuildError(f"The bundle's manifest could not be read again, so nothing is written: {error}") from error


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    flush(path)
