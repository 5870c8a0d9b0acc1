"""A whole profile: ceilings, buckets, policies and peers of one bundle on this machine, in one run."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from accelaes_export import __version__
from accelaes_export.bundle import Bundle
from accelaes_export.policies.stepcache import StepCache
from accelaes_export.profiling.report import AbsentPeer, DenoiseProfile, ProfileReport
from accelaes_export.profiling.request import ProfileRequest
from accelaes_export.progress import BuildProgress, Silent

if TYPE_CHECKING:
    from accelaes_export.backends.base import Session
    from accelaes_export.profiling.peers import PeerRun, Peers
    from accelaes_export.profiling.spans import Span
    from accelaes_export.profiling.timing import Stopwatch


@dataclass(frozen=True)
class Profile:
    """The report, and the spans of one run of every policy and peer at the first batch, for a trace."""

    report: ProfileReport
    spans: dict[str, Sequence[Span]]


def profile(bundle: Bundle, request: ProfileRequest, progress: BuildProgress | None = None) -> Profile:
    """Measure `bundle` on this machine. Everything that can be wrong with the request is found before it is opened.

    Raises:
        InputError: a policy or checkpoint this bundle can't have.
        BundleError, MissingComponentError: an engine that can't run here.
    """
    from accelaes_export.profiling import machine

    request.plans(bundle.manifest)
    if request.checkpoint is not None:
        from accelaes_export.runtime.generate import pipeline_location

        pipeline_location(bundle, request.checkpoint)
    with machine.pinned_threads() as threads:
        return _Measurement(bundle, request, threads, progress or Silent()).carry_out()


class _Measurement:
    """The stages of a profile, one after the other."""

    def __init__(self, bundle: Bundle, request: ProfileRequest, threads: Any, progress: BuildProgress) -> None:
        self._bundle, self._request, self._threads, self._progress = bundle, request, threads, progress
        self._spans_of_runs: dict[str, Sequence[Span]] = {}

    def carry_out(self) -> Profile:
        from accelaes_export.profiling import machine
        from accelaes_export.profiling.buckets import profile_buckets
        from accelaes_export.profiling.ceilings import measure_ceilings
        from accelaes_export.profiling.parts import profile_parts
        from accelaes_export.profiling.timing import HostStopwatch, first_call, stopwatch

        bundle, request, manifest = self._bundle, self._request, self._bundle.manifest
        with self._stage("open", manifest.backend.name):
            open_seconds = first_call(bundle.session, HostStopwatch())
        session = bundle.session()
        watch = stopwatch(session.device)
        before = machine.observe(session.device)
        with self._stage("ceilings", manifest.contract.dtype):
            ceilings = measure_ceilings(session.device, manifest.contract.dtype, watch)
        with self._stage("buckets", f"{len(manifest.contract.buckets)}, {request.iterations} rounds") as stage:
            rounds = {"rounds": request.iterations, "warmup": request.warmup}
            buckets = profile_buckets(session, manifest, ceilings, watch, **rounds, progress=stage.update)
        peers = self._peers(session)
        policies: list[DenoiseProfile] = []
        others: list[DenoiseProfile] = []
        absent: dict[str, AbsentPeer] = {}
        for images in request.batches:
            found = self._denoise(session, watch, images, peers)
            policies += found[0]
            others += found[1]
            absent |= {peer.name: peer for peer in found[2]}
        del peers
        gc.collect()
        with self._stage("text encoders, VAE", f"{request.iterations} pictures") as stage:
            parts, why_none = profile_parts(
                bundle, watch, request.checkpoint, rounds=request.iterations, progress=stage.update
            )
        after = machine.observe(session.device)
        report = ProfileReport(
            created_by=f"accelaes-export {__version__}",
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            bundle=about_bundle(bundle),
            request=request.as_dict(),
            machine=machine.describe(session.device, self._threads)
            | {"before": before.as_dict(), "after": after.as_dict()},
            notes=machine.doubts(before, after),
            ceilings=ceilings,
            open_seconds=open_seconds,
            buckets=buckets,
            policies=tuple(policies),
            peers=tuple(others),
            absent=tuple(absent.values()),
            parts=parts,
            parts_note=why_none,
        )
        return Profile(report, self._spans_of_runs)

    def _stage(self, name: str, detail: str) -> AbstractContextManager[Any]:
        return self._progress.stage(name, detail)

    def _peers(self, session: Session) -> Peers | None:
        """The diffusers model behind the peers: the one place where measuring needs the build wing."""
        if not self._request.against:
            return None
        from accelaes_export.profiling.peers import Peers
        from accelaes_export.verification import model_arguments, source_model

        manifest = self._bundle.manifest
        with self._stage("load", manifest.source.location):
            model = source_model(manifest, self._request.checkpoint).to(session.device).eval().requires_grad_(False)
        # Equal work: as many full computes as StepCache's own plan has, with the options it is measured with.
        stepcache = next((p for p in self._request.policies if isinstance(p, StepCache)), StepCache())
        plan = stepcache.plan(self._request.steps_of(None, manifest))
        return Peers(model, model_arguments(manifest, model), self._request.against, plan)

    def _denoise(
        self, session: Session, watch: Stopwatch, images: int, peers: Peers | None
    ) -> tuple[list[DenoiseProfile], list[DenoiseProfile], list[AbsentPeer]]:
        """Policies and peers from noise to latents, in the same rounds."""
        from accelaes_export.profiling.denoise import DenoiseProblem
        from accelaes_export.profiling.policies import DENSE, PolicyRun
        from accelaes_export.profiling.spans import Spans
        from accelaes_export.profiling.timing import interleaved

        request, manifest = self._request, self._bundle.manifest
        T = request.steps_of(None, manifest)
        problems = {
            steps: DenoiseProblem(manifest, images, steps, session.device)
            for steps in {T, *(request.steps_of(policy, manifest) for policy in request.policies)}
        }
        spans = Spans(watch, ranges=session.device.type == "cuda")
        runs = [
            PolicyRun(policy, session, manifest, problems[request.steps_of(policy, manifest)], spans)
            for policy in request.policies
        ]
        others: list[PeerRun] = []
        absent: list[AbsentPeer] = []
        if peers is not None:
            with self._stage("peers", f"batch {images}: set to equal work") as stage:
                others, absent = peers.runs(problems[T], spans, lambda name: stage.update(None, name))
        by_name: dict[str, PolicyRun | PeerRun] = {run.name: run for run in runs}
        by_name |= {run.name: run for run in others}
        with self._stage("denoise", f"batch {images}: {', '.join(by_name)}") as stage:
            timings = interleaved(
                by_name,
                watch,
                rounds=request.iterations,
                warmup=request.warmup,
                unmeasured=spans.take,
                measured=lambda name: by_name[name].keep(),
                progress=stage.update,
            )
        if images == request.batches[0]:
            self._spans_of_runs = {name: run.taken[-1] for name, run in by_name.items()}
        measured = [run.profile(timings, T) for run in runs]
        return measured, [run.profile(timings, DENSE) for run in others], absent


def about_bundle(bundle: Bundle) -> dict[str, Any]:
    """What the manifest says that figures depend on."""
    manifest, contract = bundle.manifest, bundle.manifest.contract
    return {
        "path": os.fspath(bundle.path),
        "model": manifest.model,
        "build_key": manifest.build_key,
        "form": manifest.form,
        "weights": manifest.source.kind,
        "backend": manifest.backend.name,
        "backend_versions": manifest.backend.versions,
        "targets": list(manifest.backend.targets),
        "dtype": contract.dtype,
        "batch": contract.batch,
        "rows": contract.rows,
        "tokens": contract.tokens,
        "text_tokens": contract.text_tokens,
        "buckets": list(contract.buckets),
        "layers": manifest.layers,
        "size": manifest.latents.size,
    }
