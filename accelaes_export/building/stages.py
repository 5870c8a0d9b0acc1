"""Finished stages of a build, kept beside the bundles so that a repeated or interrupted build reuses what is whole.

A stage is a folder `.stages/<name>-<key>` next to the bundle, where the key is a hash of everything its outcome
depends on. It is made under another name and renamed when it is done, so a folder of that name is always whole.
Bundles hard-link its files; removing `.stages` costs nothing but the time to build again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelaes_export.errors import BuildError
from accelaes_export.files.hashing import sha256_of
from accelaes_export.files.reading import parse_json, read_given

KEY_LENGTH = 16
_HASHES = "stage.json"  # file name to SHA-256, written last


def stage_key(**parts: Any) -> str:
    """Hex key of what a stage depends on; parts must be plain data (JSON)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]


class StageStore:
    """The stages beside one output folder."""

    def __init__(self, output: Path) -> None:
        self.root = output.parent / ".stages"

    def find(self, name: str, key: str) -> Path | None:
        """The finished stage's folder, or None. One whose files were altered since is removed, and so not found.

        Bundles share their files with stages, so whoever edits a bundle's file in place edits the stage's.
        """
        folder = self._folder(name, key)
        try:
            hashes = parse_json(read_given(folder / _HASHES))
            whole = bool(hashes) and _hashed(folder) == hashes
        except (OSError, ValueError):
            whole = False
        if not whole:
            self._take_away(folder)
        return folder if whole else None

    def make(self, name: str, key: str, work: Callable[[Path], None]) -> Path:
        """Run `work` on an empty folder and keep it as this stage; nothing is kept where it raises.

        Raises:
            BuildError: the disk or the memory ran out in the middle.
        """
        folder = self._folder(name, key)
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            work(partial)
            (partial / _HASHES).write_text(json.dumps(_hashed(partial)), encoding="utf-8")
            try:
                partial.rename(folder)
            except OSError:
                # A build into another output finished the same stage meanwhile: one is as good as the other. What lies
                # there and is spoilt, `find` takes away.
                if self.find(name, key) is None:
                    partial.rename(folder)
        except MemoryError as error:
            raise BuildError(f"Stage {name} ran out of memory; close other programs, or build in fp16.") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise BuildError(
                f"The disk is full: stage {name} could not be written to {self.root}; free some space, or choose "
                "another folder with -o."
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def _take_away(self, folder: Path) -> None:
        """Remove a stage, if it is there; renamed first, so that half of it is never met under its own name."""
        gone = folder.with_name(f".{folder.name}.gone.{os.getpid()}")
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(OSError):
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def clean(self) -> None:
        """Remove what builds that were killed left half-made."""
        for partial in self.root.glob(".*"):
            owner = partial.name.rpartition(".")[2]
            if owner.isdigit() and not Path(f"/proc/{owner}").exists():
                shutil.rmtree(partial, ignore_errors=True)

    def _folder(self, name: str, key: str) -> Path:
        return self.root / f"{name}-{key}"


def _hashed(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in it, and in folders in it, but the hashes' own."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / _HASHES]
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
