"""Progress on a terminal: a spinner while a stage runs, one line when it ends. In a pipe or a log, only the lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.text import Text

from accelaes_export.cli.peak_memory import PeakMemory
from accelaes_export.progress import Stage

_NAME_WIDTH = 20  # "load, trace, export", when an earlier build left all three


class TerminalProgress:
    """A `BuildProgress` that prints to `console`."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def estimate(self, disk_bytes: int, memory_bytes: int, free_disk: int, free_memory: int) -> None:
        disk = f"disk {readable_size(disk_bytes)} ({readable_size(free_disk)} free)"
        self._line(
            "will need", f"{disk}, memory {readable_size(memory_bytes)} ({readable_size(free_memory)} free)", "bold"
        )

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[Stage]:
        status = self._console.status(Text(name)) if self._console.is_terminal else None
        started = time.perf_counter()
        peak = PeakMemory()
        outcome, style = "failed after ", "red"
        try:
            with peak:
                if status is not None:
                    status.start()
                yield _TerminalStage(name, status)
            outcome, style = "", "green"
        finally:
            if status is not None:
                status.stop()
            measured = (
                f"{outcome}{time.perf_counter() - started:.1f} s".rjust(8) + f"  peak {readable_size(peak.bytes)}"
            )
            self._line(name, f"{measured}  {detail}".rstrip(), style)

    def reused(self, name: str, detail: str = "") -> None:
        self._line(name, f"  reused  {detail}".rstrip(), "cyan")

    def note(self, text: str) -> None:
        self._line("note", text, "yellow")

    def _line(self, name: str, text: str, style: str) -> None:
        line = Text.assemble((name.ljust(_NAME_WIDTH), style), " ", text)
        self._console.print(line, soft_wrap=True)


class _TerminalStage:
    def __init__(self, name: str, status: Status | None) -> None:
        self._name = name
        self._status = status

    def update(self, fraction: float | None, note: str = "") -> None:
        if self._status is not None:
            done = "" if fraction is None else f" {fraction:.0%}"
            self._status.update(Text(f"{self._name}{done} {note}".rstrip()))


def readable_size(size: int) -> str:
    """A size a person reads: 1.23 GB, 45.6 MB, 3.2 kB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}" if name == "GB" else f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.1f} kB"
