"""Stretches of a device's time: what a denoise did when, for sums and for traces. Taking them never waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from accelaes_export.contract.tensors import FOCUS_INDEX, HIDDEN_STATES
from accelaes_export.measure.profiling.timing import Stopwatch

if TYPE_CHECKING:
    import torch

    from accelaes_export.backends.base import Session
    from accelaes_export.backends.workspace import Workspace
    from accelaes_export.contract.tensors import GraphContract

RUN, STEP, ENGINE = "run", "step", "engine"


@dataclass(frozen=True)
class Span:
    """A finished stretch, in seconds since the first mark of its run.

    `what` is RUN (a whole denoise), STEP (a step, as the pipeline calls it) or ENGINE (a session call).
    """

    what: str
    name: str
    start: float
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)


class Spans:
    """Records the spans of one run after the other.

    Args:
        watch: the device's clock.
        ranges: also make them NVTX ranges, which Nsight shows.
    """

    def __init__(self, watch: Stopwatch, *, ranges: bool = False) -> None:
        self._watch = watch
        self._ranges = ranges
        self._marks: list[tuple[str, str, Any, Any, dict[str, Any]]] = []

    @contextmanager
    def span(self, what: str, name: str, **details: Any) -> Iterator[None]:
        """What is enqueued in the `with` block."""
        if self._ranges:
            import torch

            torch.cuda.nvtx.range_push(f"{what} {name}")
        start = self._watch.mark()
        try:
            yield
        finally:
            self._marks.append((what, name, start, self._watch.mark(), details))
            if self._ranges:
                torch.cuda.nvtx.range_pop()

    def take(self) -> tuple[Span, ...]:
        """The spans recorded since the last time, in the order they began; the device must have reached them."""
        marks, self._marks = self._marks, []
        if not marks:
            return ()
        seconds = self._watch.seconds
        outer = next((start for what, _, start, _, _ in marks if what == RUN), marks[0][2])
        spans = [
            Span(what, name, seconds(outer, start), seconds(start, end), details)
            for what, name, start, end, details in marks
        ]
        return tuple(sorted(spans, key=lambda span: (span.start, -span.seconds)))


class RecordedSession:
    """A session whose calls are spans; to the denoiser it is the session itself."""

    def __init__(self, session: Session, spans: Spans) -> None:
        self.contract: GraphContract = session.contract
        self.device: torch.device = session.device
        self.workspaces = session.workspaces
        self._session = session
        self._spans = spans

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
        workspace: Workspace | None = None,
    ) -> None:
        """See `Session.run`."""
        B = inputs[HIDDEN_STATES].shape[0]
        n = inputs[FOCUS_INDEX].shape[1] if FOCUS_INDEX in inputs else self.contract.tokens
        with self._spans.span(ENGINE, f"n = {n}", n=n, rows=B):
            self._session.run(inputs, outputs, workspace)
