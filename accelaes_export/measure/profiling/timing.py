"""One way to time: warm up, take turns in rounds, and compare only what ran moments apart.

Machines drift: clocks fall as they warm up, neighbours come and go. So every round does every piece of work once, in an
order drawn anew, ratios are formed within a round, and what is reported is their median with the 10th and 90th
percentile. The first call of a piece is kept apart, because it compiles, allocates and loads.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from accelaes_export.measure.profiling.report import Spread

if TYPE_CHECKING:
    import torch


class Stopwatch(Protocol):
    """Points in a device's time."""

    def mark(self) -> Any:
        """This point of the device's work; doesn't wait for it."""

    def seconds(self, start: Any, end: Any) -> float:
        """From one mark to another, both of them reached."""

    def wait(self) -> None:
        """Until the device has done everything."""


class HostStopwatch:
    """For CPUs, where a call returns when its work is done. `now` gives seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def mark(self) -> float:
        return self._now()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def wait(self) -> None:
        """Nothing is under way."""


class CudaStopwatch:
    """CUDA events on torch's current stream: the GPU's own time, without stopping it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Any:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        return 1e-3 * float(start.elapsed_time(end))

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize(self._device)


def stopwatch(device: torch.device) -> Stopwatch:
    """The device's own."""
    return CudaStopwatch(device) if device.type == "cuda" else HostStopwatch()


@dataclass
class Timing:
    """Seconds of one piece of work: its first call, then one value a round.

    Attributes:
        first: of the first call, on the host's clock, the device waited for.
        rounds: of the measured calls, on the device's clock.
        host: of the same calls, until the host could go on.
    """

    first: float = 0.0
    rounds: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)


def interleaved(
    work: Mapping[str, Callable[[], object]],
    watch: Stopwatch,
    *,
    rounds: int,
    warmup: int,
    seed: int = 0,
    calls: int = 1,
    measured: Callable[[str], None] | None = None,
    unmeasured: Callable[[], object] | None = None,
    after_round: Callable[[Mapping[str, Timing]], None] | None = None,
    progress: Callable[[float, str], None] | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every piece of work in turns.

    Args:
        work: what is to be timed, by name.
        watch: the device's clock.
        rounds: measured rounds; each does every piece once, in an order drawn from `seed`.
        warmup: rounds before them that aren't measured; the first call is none of them.
        calls: how often a piece is called for one measured value, one right after the other.
        measured: told of every piece after it was measured, when the device has done it.
        unmeasured: called after every first and every warm-up call, to throw away what it left behind.
        after_round: given what is there after every measured round.
        progress: told how much is done, and of what.
        now: the host's clock.
    """
    timings = {name: Timing() for name in work}
    for name, piece in work.items():
        if progress is not None:
            progress(0.0, f"{name}, first call")
        timings[name].first = first_call(piece, watch, now)
        if unmeasured is not None:
            unmeasured()
    order, draw = list(work), random.Random(seed)
    for k in range(warmup + rounds):
        draw.shuffle(order)
        for name in order:
            if progress is not None:
                progress(k / (warmup + rounds), f"{name}, {'warm-up' if k < warmup else f'round {k - warmup + 1}'}")
            device, host = _timed(work[name], watch, calls, now)
            if k < warmup:
                if unmeasured is not None:
                    unmeasured()
                continue
            timings[name].rounds.append(device)
            timings[name].host.append(host)
            if measured is not None:
                measured(name)
        if k >= warmup and after_round is not None:
            after_round(timings)
    return timings


def first_call(piece: Callable[[], object], watch: Stopwatch, now: Callable[[], float] = time.perf_counter) -> float:
    """Seconds on the host's clock until the device has done `piece` for the first time."""
    watch.wait()
    started = now()
    piece()
    watch.wait()
    return now() - started


def _timed(piece: Callable[[], object], watch: Stopwatch, calls: int, now: Callable[[], float]) -> tuple[float, float]:
    """Seconds of one call on the device's and on the host's clock, averaged over `calls`."""
    watch.wait()
    started, start = now(), watch.mark()
    for _ in range(calls):
        piece()
    end, ended = watch.mark(), now()
    watch.wait()
    return watch.seconds(start, end) / calls, (ended - started) / calls


def spread(values: Sequence[float]) -> Spread:
    """Median, 10th and 90th percentile (between the two nearest values), and minimum."""
    ordered = sorted(values)
    return Spread(
        median=statistics.median(ordered),
        p10=_percentile(ordered, 0.1),
        p90=_percentile(ordered, 0.9),
        minimum=ordered[0],
        count=len(ordered),
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def ratios(numerator: Timing, denominator: Timing) -> Spread:
    """One time over another, round by round."""
    return spread([a / b for a, b in zip(numerator.rounds, denominator.rounds, strict=True)])
