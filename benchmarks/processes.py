"""What a command takes, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Took:
    """Wall-clock and CPU seconds, and the peak of memory in bytes."""

    seconds: float
    cpu_seconds: float
    peak: int


def measured(command: Sequence[object], what: str, *, silent: bool = False) -> Took:
    """Run a command, which must end well; what it says is shown unless it is to be silent."""
    output = subprocess.DEVNULL if silent else None
    begun = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{what} ended with {os.waitstatus_to_exitcode(status)}.")
    return Took(time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
