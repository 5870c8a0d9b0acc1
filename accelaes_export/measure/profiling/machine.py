"""The machine figures come from, what else it was doing meanwhile, and threads that stay where they are."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from accelaes_export.backends import backend, names
from accelaes_export.backends.onnxruntime import THREADS_VARIABLE
from accelaes_export.measure.profiling import gpu

if TYPE_CHECKING:
    import torch

_SECONDS_OBSERVED = 0.3
_BUSY = 0.2
"""A process that uses more of a core than this is noise."""


@dataclass(frozen=True)
class Threads:
    """How many compute threads run, and the CPUs they may use; `pinned` where these are just as many."""

    count: int
    cpus: tuple[int, ...]
    pinned: bool


@contextmanager
def pinned_threads() -> Iterator[Threads]:
    """Until the end of the block this process keeps to as many of its CPUs as it has compute threads.

    That number is $ACCELAES_THREADS, or torch's own. Engines opened inside have as many, on the same CPUs, so that what
    they are compared with has no other means. Where the system can't pin (macOS), or there are fewer CPUs than threads,
    threads stay free and the result says so.
    """
    import torch

    before, allowed, asked = torch.get_num_threads(), _allowed_cpus(), os.environ.get(THREADS_VARIABLE)
    count = int(asked) if asked and asked.isdecimal() and int(asked) else before
    chosen = tuple(sorted(allowed)[:count])
    possible = hasattr(os, "sched_setaffinity") and len(chosen) == count
    torch.set_num_threads(count)
    os.environ[THREADS_VARIABLE] = asked or str(count)
    if possible:
        _keep_to(chosen)
    try:
        yield Threads(count, chosen if possible else tuple(sorted(allowed)), possible)
    finally:
        torch.set_num_threads(before)
        if asked is None:
            del os.environ[THREADS_VARIABLE]
        else:
            os.environ[THREADS_VARIABLE] = asked
        if possible:
            _keep_to(allowed)


def free_threads() -> Threads:
    """What there is without pinning: as many threads as torch has, on any CPU this process may use."""
    import torch

    return Threads(torch.get_num_threads(), tuple(sorted(_allowed_cpus())), False)


def _keep_to(cpus: Iterable[int]) -> None:
    """Every thread there is: pools that were started before, and this one, from which later ones inherit."""
    for thread in psutil.Process().threads():
        with suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(thread.id, cpus)


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def describe(device: torch.device, threads: Threads) -> dict[str, Any]:
    """CPU, memory, GPU, system and versions, as plain data."""
    found: dict[str, Any] = {
        "device": str(device),
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "threads": threads.count,
        "cpus": list(threads.cpus),
        "pinned": threads.pinned,
        "versions": versions(),
    }
    if device.type == "cuda":
        found["gpu"] = gpu.describe(device)
    return found


def versions(packages: tuple[str, ...] | None = None) -> dict[str, str]:
    """Python's and those of the packages that are installed; diffusers' and every backend's if None."""
    if packages is None:
        every = ("torch", "diffusers", *(name for own in names() for name in backend(own).packages))
        packages = tuple(dict.fromkeys(every))
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    """The model, as Linux tells it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


@dataclass(frozen=True)
class Moment:
    """What the machine was doing at one time.

    Attributes:
        load: average runnable processes over the last minute, or None where the system doesn't count them.
        busy: name and share of a core of every other process that used more than a fifth of one.
        cpu_mhz: current clock, or None.
        gpu: clocks, power, temperature and other processes of the GPU; {} without one.
    """

    load: float | None
    busy: tuple[tuple[str, float], ...]
    cpu_mhz: float | None
    gpu: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"busy": [{"name": name, "cores": share} for name, share in self.busy]}


def observe(device: torch.device) -> Moment:
    """Watch the other processes for a moment; this one sleeps meanwhile."""
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    return Moment(
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        busy=_busy_processes(),
        cpu_mhz=frequency.current if frequency else None,
        gpu=gpu.observe(device) if device.type == "cuda" else {},
    )


def _busy_processes() -> tuple[tuple[str, float], ...]:
    used = []
    for process in psutil.process_iter():
        try:
            used.append((process, process.name(), _cpu_seconds(process)))
        except psutil.Error:  # ended meanwhile, or not ours to ask
            continue
    started = time.perf_counter()
    time.sleep(_SECONDS_OBSERVED)
    elapsed = time.perf_counter() - started
    busy = []
    for process, name, before in used:
        try:
            share = (_cpu_seconds(process) - before) / elapsed
        except psutil.Error:
            continue
        if share > _BUSY and process.pid != os.getpid():
            busy.append((name, share))
    return tuple(sorted(busy, key=lambda entry: -entry[1]))


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def doubts(before: Moment, after: Moment) -> tuple[str, ...]:
    """What makes figures measured between two moments doubtful, one sentence each."""
    found = []
    for when, moment in (("before", before), ("after", after)):
        if moment.busy:
            listed = ", ".join(f"{name} ({share:.0%} of a core)" for name, share in moment.busy[:4])
            found.append(f"Other processes were busy {when} the measurement: {listed}.")
    return (*found, *gpu.doubts(before.gpu, after.gpu))
