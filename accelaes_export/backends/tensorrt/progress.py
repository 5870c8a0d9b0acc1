"""A build's progress and its end before time: TensorRT asks after every step whether to go on."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from accelaes_export.backends.base import Progress


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class EngineProgress:
    """Turns TensorRT's nested phases into one rising fraction, and hands over a wish to stop.

    Its methods are called from TensorRT's threads and must not raise into them: what the caller's callback
    raises is kept in `error` and ends the build.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self._reported = -1.0
        self._stop = threading.Event()
        self.error: BaseException | None = None

    def stop(self) -> None:
        """Let the build end at its next step."""
        self._stop.set()

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))

    def phase_finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def step_complete(self, name: str, step: int) -> bool:
        """False to end the build."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            fraction = self._fraction()
            # Phases come by the thousand; a hundred reports are enough for any progress bar.
            due = fraction >= self._reported + 0.01
            if due:
                self._reported = fraction
        if due and not self._stop.is_set():
            try:
                self._progress("build engine", fraction)
            except BaseException as error:
                self.error = error
                self.stop()
        return not self._stop.is_set()

    def _fraction(self) -> float:
        root = next((name for name, phase in self._phases.items() if phase.parent is None), None)
        return 0.0 if root is None else min(self._fraction_of(root), 1.0)

    def _fraction_of(self, name: str) -> float:
        phase = self._phases[name]
        children = [child for child, other in self._phases.items() if other.parent == name]
        inner = max((self._fraction_of(child) for child in children), default=0.0)
        return (phase.done + min(inner, 1.0)) / phase.steps


def tensorrt_monitor(trt: Any, state: EngineProgress) -> Any:
    """An `IProgressMonitor` over `state`; it must live as long as the build."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            state.phase_start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            state.phase_finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return state.step_complete(phase_name, step)

    return Monitor()
