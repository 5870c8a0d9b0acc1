"""What a profile says, as data: the JSON file's schema.

Seconds everywhere; a spread is of the rounds of one run. Ratios are formed within a round, both sides measured
moments apart, and spread over the rounds.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from accelaes_export.contract.records import Record
from accelaes_export.policies.plan_quality import PlanQuality

SCHEMA_VERSION = 1


class Spread(Record):
    """Of one quantity over `count` rounds."""

    median: float
    p10: float
    p90: float
    minimum: float
    count: int


class Ceilings(Record):
    """What the device reaches in this run, at its best: matrix products in the bundle's dtype, and copies.

    `copy_bytes_per_second` counts what is read and what is written.
    """

    dtype: str
    matmul_flops_per_second: float
    matmul_size: int
    copy_bytes_per_second: float
    copy_bytes: int


class Kernel(Record):
    """One kernel, operator or layer of the engine's: how often a step calls it, and its time in a step."""

    name: str
    calls: float
    seconds: float


class BucketProfile(Record):
    """One focus step with n tokens at the engine's largest B.

    Attributes:
        first_seconds: of the very first call: compilation at first use, allocation, memory touched for the first time.
        seconds, rounds: of one step; the rounds are those of all buckets, in order, for ratios of one's own.
        of_dense: time over the dense step's in the same round.
        flops: of the step, counted from the graph (a multiply-add is two).
        flops_of_dense: over the dense step's.
        of_limit: flops_of_dense over the median of_dense: 1 where time falls as FLOPs do, less where it doesn't.
        flops_per_second: achieved in the median step.
        of_ceiling: its share of the measured matmul ceiling.
        buffer_bytes: the step's inputs and outputs.
        scratch_bytes: what memory in use grew by at the first call, smallest bucket first: what the engine keeps for
            this bucket, unless it takes what it kept for a smaller one.
        used_bytes: memory in use after it, of the process on a CPU, of the whole device on a GPU.
        kernels: the slowest first; empty where the backend tells nothing.
        kernels_from: who counted them.
    """

    n: int
    fraction: float
    first_seconds: float
    seconds: Spread
    rounds: tuple[float, ...]
    of_dense: Spread
    flops: int
    flops_of_dense: float
    of_limit: float
    flops_per_second: float
    of_ceiling: float
    buffer_bytes: int
    scratch_bytes: int
    used_bytes: int
    kernels: tuple[Kernel, ...] = ()
    kernels_from: str = ""


class StepKindTime(Record):
    """All steps of one kind and focus count in a run: how many, and the time of one."""

    kind: str
    n: int
    count: int
    seconds: Spread


class Runtime(Record):
    """What a denoise spends outside the engine, per step.

    Attributes:
        seconds_per_step: of the runtime: time in the denoiser less time in engine calls, over T.
        of_dense_step: the same over the median dense step's time.
        loop_seconds_per_step: of the loop around it, which stands for the pipeline: guidance, and the update.
        host_seconds: until the host had everything enqueued; on a CPU the whole time.
        host_waits: operations in one run that made the host wait for the device, counted in a run of its own after the
            rounds; None in a report that was written before.
        graphs_captured, graphs_replayed: CUDA graphs of the last measured run; after the first run none is captured.
    """

    seconds_per_step: Spread
    of_dense_step: float
    loop_seconds_per_step: Spread
    host_seconds: Spread
    host_waits: int | None
    graphs_captured: int = 0
    graphs_replayed: int = 0


class DenoiseProfile(Record):
    """A whole denoise of `images` pictures: T steps from noise to latents, without text encoders and VAE.

    Attributes:
        name: of the policy, or of the peer.
        settings: the policy's options, or the peer's.
        plan: as carried out, one symbol a step; of a peer, D for every full compute and . for every other call.
        engine_calls: the engine's, or full forwards of a peer's model; a step may have several.
        flop_cost: counted FLOPs of all engine calls, in dense steps; of peers None.
        flop_limit: what the ratio to dense would be if time were FLOPs.
        rounds: seconds of every round, the same rounds for all policies and peers of a batch.
        dense_over_this: time of `dense` over this one's in the same round; None where dense wasn't asked for.
        of_limit: median dense_over_this over flop_limit.
        kinds, runtime: of policies.
        quality: what was measured of a policy's plan on the bundle's checkpoint; None: nothing was.
        kept: the parts' mean share at every step of a plan with layer-wise steps.
        full_computes: of a peer: steps in which the whole network ran; `wanted_computes` were to be reached.
        versions: of the packages behind a peer.
    """

    name: str
    settings: dict[str, Any]
    images: int
    plan: str
    engine_calls: int
    first_seconds: float
    seconds: Spread
    rounds: tuple[float, ...]
    images_per_second: float
    dense_over_this: Spread | None
    flop_cost: float | None = None
    flop_limit: float | None = None
    of_limit: float | None = None
    kinds: tuple[StepKindTime, ...] = ()
    runtime: Runtime | None = None
    quality: PlanQuality | None = None
    kept: tuple[float, ...] = ()
    full_computes: int | None = None
    wanted_computes: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)


class Part(Record):
    """A part of the pipeline beside the transformer: a text encoder or the VAE, for one picture."""

    name: str
    calls: int
    first_seconds: float
    seconds: Spread


class AbsentPeer(Record):
    """A peer that was asked for and not measured, why, and what mends it."""

    name: str
    reason: str
    remedy: str


class ProfileReport(Record):
    """A whole profile, as `--save-json` writes it."""

    schema_version: int = SCHEMA_VERSION
    created_by: str
    created: str  # ISO 8601, UTC
    bundle: dict[str, Any]  # what the manifest says: model, build_key, form, backend, dtype, N, buckets ...
    request: dict[str, Any]
    machine: dict[str, Any]
    notes: tuple[str, ...] = ()  # what makes these figures doubtful
    ceilings: Ceilings
    open_seconds: float  # of the engine, from disk
    buckets: tuple[BucketProfile, ...] = ()
    policies: tuple[DenoiseProfile, ...] = ()
    peers: tuple[DenoiseProfile, ...] = ()
    absent: tuple[AbsentPeer, ...] = ()
    parts: tuple[Part, ...] = ()
    parts_note: str = ""  # why there are none
    unfinished: str = ""  # in a report that was written on the way: what comes next
