"""How long work tells of itself: libraries call a `BuildProgress`, the command line draws it, scripts stay silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Stage(Protocol):
    """A stage under way."""

    def update(self, fraction: float | None, note: str = "") -> None:
        """How much of it is done, 0 to 1 (None: unknown), and what it is doing."""


class BuildProgress(Protocol):
    """Follows a build from its estimate to its last stage."""

    def estimate(self, disk_bytes: int, memory_bytes: int, free_disk: int, free_memory: int) -> None:
        """Before anything starts: what the build will need and what there is."""

    def stage(self, name: str, detail: str = "") -> AbstractContextManager[Stage]:
        """A stage from here to the end of the `with` block: load, trace, export, compile, verify or write."""

    def reused(self, name: str, detail: str = "") -> None:
        """A stage that needn't run, because an earlier build finished it."""

    def note(self, text: str) -> None:
        """Something worth knowing."""


class Silent:
    """A `BuildProgress` that says nothing; also the `Stage` of its stages."""

    def estimate(self, disk_bytes: int, memory_bytes: int, free_disk: int, free_memory: int) -> None:
        pass

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[Silent]:
        yield self

    def update(self, fraction: float | None, note: str = "") -> None:
        pass

    def reused(self, name: str, detail: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass
