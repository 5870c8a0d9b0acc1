"""Peak memory of a stretch of work: the resident set of this process and its children."""

from __future__ import annotations

import resource
import threading
from types import TracebackType

import psutil

_SECONDS_BETWEEN_SAMPLES = 0.1


class PeakMemory:
    """Context manager; `bytes` is the largest resident set since it was entered.

    The kernel's own high-water mark (ru_maxrss) is exact but never falls, so it counts only where it rose; peaks
    below an earlier one, and those of child processes, come from sampling ten times a second.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="peak-memory", daemon=True)
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        self._mark_before = _high_water_mark()
        self._sample()
        # Near a limit on addresses a thread may die before it runs, and starting it waits for it forever.
        self._sampling = resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
        if self._sampling:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._sampling:
            self._thread.join()
        self._sample()
        mark = _high_water_mark()
        if mark > self._mark_before:
            self.bytes = max(self.bytes, mark)

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_SAMPLES):
            self._sample()

    def _sample(self) -> None:
        total = self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            try:
                total += child.memory_info().rss
            except psutil.Error:  # it ended meanwhile
                continue
        self.bytes = max(self.bytes, total)


def _high_water_mark() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
