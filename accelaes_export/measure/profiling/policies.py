"""Policies from noise to latents: step kinds, what the runtime costs, and how near a plan comes to its own limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from accelaes_export.contract.geometry import Geometry
from accelaes_export.contract.manifest import Manifest
from accelaes_export.measure.profiling.denoise import DenoiseProblem
from accelaes_export.measure.profiling.host_waits import HostWaits
from accelaes_export.measure.profiling.report import DenoiseProfile, Runtime, StepKindTime
from accelaes_export.measure.profiling.spans import ENGINE, RUN, STEP, RecordedSession, Span, Spans
from accelaes_export.measure.profiling.timing import Timing, ratios, spread
from accelaes_export.policies import registry
from accelaes_export.policies.base import Policy
from accelaes_export.policies.layer_schedule import counts_of
from accelaes_export.policies.plan import Plan, StepKind
from accelaes_export.runtime.denoiser import Denoiser
from accelaes_export.runtime.policy_choice import quality_of
from accelaes_export.runtime.report import GraphUse, RunReport, StepRecord
from accelaes_export.runtime.trajectory import Run

if TYPE_CHECKING:
    from accelaes_export.backends.base import Session

DENSE = "dense"


class PolicyRun:
    """One policy on one problem: a piece of work for the rounds, and what its runs left behind.

    Attributes:
        name: in the rounds and in the report.
        taken: the spans of every measured run.
    """

    def __init__(
        self, label: str, policy: Policy, session: Session, manifest: Manifest, problem: DenoiseProblem, spans: Spans
    ) -> None:
        self.name = label
        self.policy = policy
        self.plan: Plan = policy.plan(problem.steps, manifest.sparse_fractions, manifest.range_shares)
        self.taken: list[tuple[Span, ...]] = []
        self._quality = quality_of(manifest, policy, str(self.plan))
        self._geometry, self._problem, self._spans = manifest.geometry, problem, spans
        recorded = RecordedSession(session, spans)
        self._denoiser = Denoiser(recorded, self._geometry.latents, manifest.bucket_fractions, manifest.call.guidance)
        clock = (
            problem.sigmas[:-1] if policy.extrapolation.clock == "sigma" else [float(i) for i in range(len(self.plan))]
        )
        weights = None
        if policy.affinity_steps(self.plan):  # every word weighs the same
            weights = torch.ones(problem.images, self._geometry.contract.text_tokens)
        self._run = Run(policy, self.plan, clock, weights)

    def __call__(self) -> torch.Tensor:
        """From noise to latents [b, ...]."""
        self._denoiser.start(self._run)
        return self._problem.run(
            lambda i, now, branch: self._denoiser.step(i, now, branch=branch), self._spans, self.name
        )

    def keep(self) -> None:
        """Keep the spans of the run that just ended; the device has done it."""
        self.taken.append(self._spans.take())

    def host_waits(self) -> int:
        """How often a run makes the host wait for the device, counted in a run of its own."""
        with HostWaits(self._problem.device) as waits:
            self()
        self._spans.take()
        return waits.count

    def profile(self, timings: Mapping[str, Timing], dense_steps: int, host_waits: int | None = None) -> DenoiseProfile:
        """The figures after some rounds.

        Args:
            timings: of all pieces of these rounds; "dense" is what this one is compared with, if it is there.
            dense_steps: T of dense.
            host_waits: what `host_waits` counted, once that was done.
        """
        own, report = timings[self.name], self._denoiser.report()  # of the last run
        cost = flop_cost(report, self._geometry)
        seconds = spread(own.rounds)
        against = ratios(timings[DENSE], own) if DENSE in timings else None
        limit = dense_steps / cost
        kinds = step_kinds(report.steps, self.taken)  # the dense steps first: every plan has some
        return DenoiseProfile(
            name=self.name,
            settings=registry.options_of(self.policy),
            images=self._problem.images,
            plan=str(report.plan),  # a policy may have decided otherwise on the way
            kept=report.plan.kept,
            engine_calls=sum(span.what == ENGINE for span in self.taken[-1]),
            first_seconds=own.first,
            seconds=seconds,
            rounds=tuple(own.rounds),
            images_per_second=self._problem.images / seconds.median,
            dense_over_this=against,
            flop_cost=cost,
            flop_limit=limit,
            of_limit=None if against is None else against.median / limit,
            kinds=kinds,
            quality=self._quality,
            runtime=runtime(self.taken, own, kinds[0].seconds.median, host_waits, report.graphs),
        )


def flop_cost(report: RunReport, geometry: Geometry) -> float:
    """Counted FLOPs of all engine calls of a run, in dense steps. A skipped step has n = 0 and costs none."""
    flops = geometry.bucket_flops
    return sum(_flops(record, report.plan, geometry) for record in report.steps) / flops[max(flops)]


def _flops(record: StepRecord, plan: Plan, geometry: Geometry) -> float:
    if record.kind is StepKind.LAYERED:
        assert geometry.layerwise is not None, "the run was on a bundle with a layer-wise step"
        return geometry.layerwise.flops_of(counts_of(plan.rows[record.index], geometry.contract.tokens))
    if record.left_out is not None:
        return geometry.range_flops[record.left_out]
    return geometry.bucket_flops[record.n] if record.n else 0


def step_kinds(records: Sequence[StepRecord], taken: Sequence[Sequence[Span]]) -> tuple[StepKindTime, ...]:
    """Times by kind and focus count, over all steps of all runs; dense first, then by falling n."""
    of_index = {record.index: (record.kind.name, record.n) for record in records}
    seconds: dict[tuple[str, int], list[float]] = {}
    for spans in taken:
        for span in spans:
            if span.what == STEP:
                seconds.setdefault(of_index[span.details["index"]], []).append(span.seconds)
    return tuple(
        StepKindTime(
            kind=kind, n=n, count=sum(found == (kind, n) for found in of_index.values()), seconds=spread(values)
        )
        for (kind, n), values in sorted(seconds.items(), key=lambda entry: -entry[0][1])
    )


def runtime(
    taken: Sequence[Sequence[Span]], timing: Timing, dense_step: float, host_waits: int | None, graphs: GraphUse
) -> Runtime:
    """What the runs spent outside the engine, per step, split into the denoiser's part and the loop's around it."""
    inside, around = [], []
    for spans in taken:
        total = {what: sum(span.seconds for span in spans if span.what == what) for what in (RUN, STEP, ENGINE)}
        steps = sum(span.what == STEP for span in spans)
        inside.append((total[STEP] - total[ENGINE]) / steps)
        around.append((total[RUN] - total[STEP]) / steps)
    outside = spread(inside)
    return Runtime(
        seconds_per_step=outside,
        of_dense_step=outside.median / dense_step,
        loop_seconds_per_step=spread(around),
        host_seconds=spread(timing.host),
        host_waits=host_waits,
        graphs_captured=graphs.captured,
        graphs_replayed=graphs.replayed,
    )
