"""The native runtime's sources, laid out for whoever builds it from an installed package."""

from __future__ import annotations

import os
import shutil
from importlib import resources
from pathlib import Path

from accelaes_export.errors import InputError, MissingComponentError
from accelaes_export.files.replacing import beside, put_in_place, remove

BUILD_SCRIPT = "build.sh"


def lay_out(folder: Path) -> None:
    """Write headers, sources, examples and a build script to `folder`, all of it or nothing.

    Raises:
        InputError: a folder that has something in it, or a file.
        MissingComponentError: a package that was installed without the sources.
        OSError: it can't be written.
    """
    with resources.as_file(resources.files("accelaes_export.engines") / "cpp") as sources:
        if not (sources / BUILD_SCRIPT).is_file():
            raise MissingComponentError(
                "The native runtime's sources aren't in this installation; install accelaes-export from its wheel."
            )
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is there already, and isn't empty; name another folder, or remove it first.")
        parent = folder.absolute().parent
        made = [place for place in (parent, *parent.parents) if not place.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        written = beside(folder.absolute(), "writing", os.getpid())
        remove(written)
        try:
            shutil.copytree(sources, written, ignore=shutil.ignore_patterns("__pycache__", "build", "installed"))
            (written / BUILD_SCRIPT).chmod(0o755)  # wheels don't keep it
            put_in_place(written, folder.absolute())
        except BaseException:
            remove(written)
            for place in made:
                place.rmdir()
            raise
