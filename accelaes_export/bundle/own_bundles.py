"""Which bundles this user built on this machine: their code may run without being asked for.

An engine of native code does what its maker wanted. A file in the user's state folder has a line for every bundle that
was built, the hash of its manifest; one that comes from elsewhere isn't in it, whatever it says of itself.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

_DEFAULT = Path("engines/built")


def remember(manifest: bytes) -> None:
    """Add a bundle that was built just now. Where the state folder can't be written, it will have to be asked for."""
    path, line = _ledger(), hashlib.sha256(manifest).hexdigest()
    with suppress(OSError):
        if path.exists() and line in path.read_text(encoding="ascii").split():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="ascii") as file:
            file.write(f"{line}\n")


def is_own(folder: Path, manifest: bytes) -> bool:
    """Whether this user built the bundle here, or it lies in this project's engines/built and is this user's."""
    with suppress(OSError):
        if hashlib.sha256(manifest).hexdigest() in _ledger().read_text(encoding="ascii").split():
            return True
    with suppress(OSError):
        real, own = folder.resolve(), os.getuid()
        if _DEFAULT.resolve() in real.parents:
            return all(path.lstat().st_uid == own for path in (real, *real.rglob("*")))
    return False


def _ledger() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "accelaes-export" / "built"
