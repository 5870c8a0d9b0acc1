"""Which kernels a step spends its time in: what the session itself counts, or what torch's profiler sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from accelaes_export.measure.profiling.report import Kernel

if TYPE_CHECKING:
    import torch

    from accelaes_export.backends.base import Session

SHOWN = 12
"""Kernels kept of a step, the slowest first."""


def kernel_table(
    session: Session, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor], *, calls: int = 3
) -> tuple[tuple[Kernel, ...], str]:
    """The slowest kernels of one step, and who counted them; nothing and '' where nobody can tell.

    A session that counts its own has a method `kernel_times(inputs, outputs, calls)`; see backends/base.py.
    """
    own = getattr(session, "kernel_times", None)
    if own is not None:
        counted = own(inputs, outputs, calls)
        found = [Kernel(name=k.name, calls=k.calls / calls, seconds=k.seconds / calls) for k in counted]
        return _slowest(found), "the engine's own profiler"
    return _slowest(_seen_by_torch(session, inputs, outputs, calls)), "torch.profiler"


def _seen_by_torch(
    session: Session, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor], calls: int
) -> list[Kernel]:
    """Every kernel on a GPU, whoever launched it; on a CPU torch's own operators."""
    from torch.profiler import ProfilerActivity, profile

    cuda = session.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        for _ in range(calls):
            session.run(inputs, outputs)
        if cuda:
            import torch

            torch.cuda.synchronize(session.device)
    kernels = []
    for event in seen.key_averages():
        # Operators on the host launch kernels and would count them twice.
        on_device = event.device_type.name == "CUDA"
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        if on_device == cuda and microseconds > 0:
            kernels.append(Kernel(name=event.key, calls=event.count / calls, seconds=1e-6 * microseconds / calls))
    return kernels


def _slowest(kernels: list[Kernel]) -> tuple[Kernel, ...]:
    return tuple(sorted(kernels, key=lambda kernel: -kernel.seconds)[:SHOWN])
