"""Every bucket by itself: time, memory, FLOP/s, and how near time comes to falling as FLOPs do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch

from accelaes_export.backends.workspace import Workspace
from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.example_inputs import example_inputs
from accelaes_export.contract.manifest import Manifest
from accelaes_export.contract.tensors import AFFINITY, BACKGROUND_PREDICTION, FOCUS_PREDICTION
from accelaes_export.measure.profiling.kernels import kernel_table
from accelaes_export.measure.profiling.report import BucketProfile, Ceilings
from accelaes_export.measure.profiling.timing import Stopwatch, Timing, first_call, interleaved, ratios, spread

if TYPE_CHECKING:
    from accelaes_export.backends.base import Session

_CALLS_A_VALUE = {"cuda": 4, "cpu": 1}
"""On a GPU several calls are enqueued for one value, as in a run: else the host's launch time is counted in."""


@dataclass(frozen=True)
class StepTensors:
    """What a step of one bucket reads and writes."""

    inputs: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.inputs.values(), *self.outputs.values()))


def step_tensors(session: Session, n: int) -> StepTensors:
    """Random inputs at the largest B, and the outputs a run fetches at most of its steps.

    A dense step fetches everything but the affinity, which one step in a run does; a sparse one its predictions.
    """
    contract = session.contract
    shapes = contract.output_shapes(contract.sizes(n))
    predictions = (FOCUS_PREDICTION, BACKGROUND_PREDICTION)
    fetched = [
        spec
        for spec in contract.outputs
        if (spec.name != AFFINITY if n == contract.tokens else spec.name in predictions)
    ]
    outputs = {
        spec.name: torch.empty(shapes[spec.name], dtype=torch_dtype(spec.dtype), device=session.device)
        for spec in fetched
    }
    return StepTensors(example_inputs(contract, n, seed=n, device=session.device, observed=False), outputs)


def profile_buckets(
    session: Session,
    manifest: Manifest,
    ceilings: Ceilings,
    watch: Stopwatch,
    *,
    rounds: int,
    warmup: int,
    progress: Callable[[float, str], None] | None = None,
) -> tuple[BucketProfile, ...]:
    """All buckets, taking turns; the dense one is what the others are compared with."""
    device, buckets = session.device, session.contract.buckets
    tensors = {n: step_tensors(session, n) for n in buckets}
    place = Workspace(session.contract.rows, device)  # all of them come back

    def step(n: int) -> Callable[[], None]:
        return lambda: session.run(tensors[n].inputs, tensors[n].outputs, place)

    first, memory = {}, {}
    for n in buckets:  # the very first calls, smallest bucket first
        before = memory_in_use(device)
        first[n] = first_call(step(n), watch)
        memory[n] = (memory_in_use(device) - before, memory_in_use(device))
    timings = interleaved(
        {str(n): step(n) for n in buckets},
        watch,
        rounds=rounds,
        warmup=warmup,
        calls=_CALLS_A_VALUE[device.type],
        progress=progress,
    )
    profiles = []
    for n, fraction in zip(buckets, manifest.bucket_fractions, strict=True):
        measured = {
            "first_seconds": first[n],
            "buffer_bytes": tensors[n].bytes,
            "scratch_bytes": max(memory[n][0], 0),
            "used_bytes": memory[n][1],
        }
        figures = bucket_figures(n, timings, manifest.geometry.bucket_flops, ceilings)
        profiles.append(BucketProfile(n=n, fraction=fraction, **figures, **measured))
    return tuple(profiles)


def with_kernels(session: Session, profiles: tuple[BucketProfile, ...]) -> tuple[BucketProfile, ...]:
    """The profiles with each bucket's slowest kernels. Last of all: watching a GPU slows it down for good."""
    found = []
    for bucket in profiles:
        tensors = step_tensors(session, bucket.n)
        kernels, source = kernel_table(session, tensors.inputs, tensors.outputs)
        found.append(bucket.model_copy(update={"kernels": kernels, "kernels_from": source if kernels else ""}))
    return tuple(found)


def bucket_figures(
    n: int, timings: Mapping[str, Timing], flops: Mapping[int, int], ceilings: Ceilings
) -> dict[str, Any]:
    """The figures of a bucket that follow from times (`timings[str(n)]`) and counted FLOPs; the largest n is dense."""
    dense = max(flops)
    seconds, of_dense = spread(timings[str(n)].rounds), ratios(timings[str(n)], timings[str(dense)])
    share, rate = flops[n] / flops[dense], flops[n] / seconds.median
    return {
        "seconds": seconds,
        "rounds": tuple(timings[str(n)].rounds),
        "of_dense": of_dense,
        "flops": flops[n],
        "flops_of_dense": share,
        "of_limit": share / of_dense.median,
        "flops_per_second": rate,
        "of_ceiling": rate / ceilings.matmul_flops_per_second,
    }


def memory_in_use(device: torch.device) -> int:
    """Bytes: of the GPU, whoever took them; of this process on a CPU."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free)
    return int(psutil.Process().memory_info().rss)
