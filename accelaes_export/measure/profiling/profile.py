"""A whole profile: ceilings, buckets, policies and peers of one bundle on this machine, in one run."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from accelaes_export import __version__
from accelaes_export.bundle.reading import Bundle
from accelaes_export.measure.profiling.report import AbsentPeer, ProfileReport
from accelaes_export.measure.profiling.request import ProfileRequest
from accelaes_export.policies.stepcache import StepCache
from accelaes_export.progress import BuildProgress, Silent

if TYPE_CHECKING:
    from accelaes_export.backends.base import Session
    from accelaes_export.measure.profiling.peers import PeerRun, Peers
    from accelaes_export.measure.profiling.spans import Span
    from accelaes_export.measure.profiling.timing import Stopwatch, Timing


@dataclass(frozen=True)
class Profile:
    """The report, and the spans of one run of every policy and peer at the first batch, for a trace."""

    report: ProfileReport
    spans: dict[str, Sequence[Span]]


def profile(
    bundle: Bundle,
    request: ProfileRequest,
    progress: BuildProgress | None = None,
    *,
    known: ProfileReport | None = None,
    partial: Callable[[ProfileReport], None] | None = None,
) -> Profile:
    """Measure `bundle` on this machine. Everything that can be wrong with the request is found before it is opened.

    Args:
        known: an earlier report of this bundle on this machine, whose ceilings and buckets aren't measured again.
        partial: given what there is after the ceilings, the buckets and every round, `unfinished` saying what is next.

    Raises:
        InputError: a policy or checkpoint this bundle can't have.
        BundleError, MissingComponentError: an engine that can't run here.
    """
    from accelaes_export.measure.profiling import machine

    request.plans(bundle.manifest)
    if request.checkpoint is not None:
        from accelaes_export.runtime.generate import require_pipeline

        require_pipeline(bundle, request.checkpoint)
    with machine.pinned_threads() as threads:
        return _Measurement(bundle, request, threads, progress or Silent(), partial).carry_out(known)


class _Measurement:
    """The stages of a profile, one after the other. `_found` is what the report has so far."""

    def __init__(
        self,
        bundle: Bundle,
        request: ProfileRequest,
        threads: Any,
        progress: BuildProgress,
        partial: Callable[[ProfileReport], None] | None,
    ) -> None:
        self._bundle, self._request, self._threads, self._progress = bundle, request, threads, progress
        self._partial = partial
        self._spans_of_runs: dict[str, Sequence[Span]] = {}
        self._found: dict[str, Any] = {}

    def carry_out(self, known: ProfileReport | None) -> Profile:
        from accelaes_export.measure.profiling import machine
        from accelaes_export.measure.profiling.buckets import with_kernels
        from accelaes_export.measure.profiling.parts import profile_parts
        from accelaes_export.measure.profiling.timing import HostStopwatch, first_call, stopwatch

        bundle, request, found = self._bundle, self._request, self._found
        with self._stage("open", bundle.manifest.backend.name):
            found["open_seconds"] = first_call(bundle.session, HostStopwatch())
        session = bundle.session()
        watch = stopwatch(session.device)
        before = machine.observe(session.device)
        about = machine.describe(session.device, self._threads)
        found["machine"] = about | {"before": before.as_dict()}
        found["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._device(session, watch, known)
        peers = self._peers(session)
        absent: dict[str, AbsentPeer] = {}
        for images in request.batches:
            absent |= {peer.name: peer for peer in self._denoise(session, watch, images, peers)}
            found["absent"] = tuple(absent.values())
        del peers
        gc.collect()
        self._save("text encoders and VAE")
        with self._stage("text encoders, VAE", f"{request.iterations} pictures") as stage:
            found["parts"], found["parts_note"] = profile_parts(
                bundle, watch, request.checkpoint, rounds=request.iterations, progress=stage.update
            )
        after = machine.observe(session.device)
        found["machine"] = about | {"before": before.as_dict(), "after": after.as_dict()}
        found["notes"] = machine.doubts(before, after)
        if known is None:
            self._save("kernels")
            with self._stage("kernels", f"{len(found['buckets'])} buckets"):
                found["buckets"] = with_kernels(session, found["buckets"])
        return Profile(self._report(), self._spans_of_runs)

    def _device(self, session: Session, watch: Stopwatch, known: ProfileReport | None) -> None:
        """What the device can do, and what every bucket takes."""
        from accelaes_export.measure.profiling.buckets import profile_buckets
        from accelaes_export.measure.profiling.ceilings import measure_ceilings

        found, request, manifest = self._found, self._request, self._bundle.manifest
        if known is not None:
            found["ceilings"], found["buckets"] = known.ceilings, known.buckets
            return
        with self._stage("ceilings", manifest.geometry.contract.dtype):
            found["ceilings"] = measure_ceilings(session.device, manifest.geometry.contract.dtype, watch)
        self._save("buckets")
        with self._stage("buckets", f"{len(manifest.geometry.contract.buckets)}, {request.iterations} rounds") as stage:
            rounds = {"rounds": request.iterations, "warmup": request.warmup}
            found["buckets"] = profile_buckets(
                session, manifest, found["ceilings"], watch, **rounds, progress=stage.update
            )
        self._save("denoises")

    def _report(self, unfinished: str = "") -> ProfileReport:
        return ProfileReport(
            created_by=f"accelaes-export {__version__}",
            bundle=about_bundle(self._bundle),
            request=self._request.as_dict(),
            unfinished=unfinished,
            **self._found,
        )

    def _save(self, upcoming: str) -> None:
        if self._partial is not None:
            self._partial(self._report(upcoming))

    def _stage(self, name: str, detail: str) -> AbstractContextManager[Any]:
        return self._progress.stage(name, detail)

    def _peers(self, session: Session) -> Peers | None:
        """The diffusers model behind the peers: the one place where measuring needs the build wing."""
        if not self._request.against:
            return None
        from accelaes_export.building.verification import model_arguments, source_model
        from accelaes_export.measure.profiling.peers import Peers

        manifest = self._bundle.manifest
        with self._stage("load", manifest.source.location):
            model = source_model(manifest, self._request.checkpoint).to(session.device).eval().requires_grad_(False)
        # Equal work: as many full computes as StepCache's own plan has, with the options it is measured with.
        stepcache = next((p for p in self._request.policies.values() if isinstance(p, StepCache)), StepCache())
        plan = stepcache.plan(self._request.steps_of(None, manifest))
        return Peers(model, model_arguments(manifest, model), self._request.against, plan)

    def _denoise(self, session: Session, watch: Stopwatch, images: int, peers: Peers | None) -> Sequence[AbsentPeer]:
        """Policies and peers from noise to latents, in the same rounds."""
        from accelaes_export.measure.profiling.denoise import DenoiseProblem
        from accelaes_export.measure.profiling.policies import DENSE, PolicyRun
        from accelaes_export.measure.profiling.spans import Spans
        from accelaes_export.measure.profiling.timing import interleaved

        request, manifest = self._request, self._bundle.manifest
        T = request.steps_of(None, manifest)
        problems = {
            steps: DenoiseProblem(manifest, images, steps, session.device)
            for steps in {T, *(request.steps_of(policy, manifest) for policy in request.policies.values())}
        }
        spans = Spans(watch, ranges=session.device.type == "cuda")
        runs = [
            PolicyRun(label, policy, session, manifest, problems[request.steps_of(policy, manifest)], spans)
            for label, policy in request.policies.items()
        ]
        others: list[PeerRun] = []
        absent: list[AbsentPeer] = []
        if peers is not None:
            with self._stage("peers", f"batch {images}: set to equal work") as stage:
                others, absent = peers.runs(problems[T], spans, lambda name: stage.update(None, name))
        by_name: dict[str, PolicyRun | PeerRun] = {run.name: run for run in runs}
        by_name |= {run.name: run for run in others}
        earlier = {kind: self._found.get(kind, ()) for kind in ("policies", "peers")}  # of other batches

        def take_in(timings: Mapping[str, Timing], waits: Mapping[str, int] = MappingProxyType({})) -> None:
            policies = [run.profile(timings, T, waits.get(run.name)) for run in runs]
            self._found["policies"] = (*earlier["policies"], *policies)
            self._found["peers"] = (*earlier["peers"], *(run.profile(timings, DENSE) for run in others))

        def after_round(timings: Mapping[str, Timing]) -> None:
            if self._partial is not None:
                take_in(timings)
                self._save(f"more rounds of batch {images}")

        with self._stage("denoise", f"batch {images}: {', '.join(by_name)}") as stage:
            timings = interleaved(
                by_name,
                watch,
                rounds=request.iterations,
                warmup=request.warmup,
                unmeasured=spans.take,
                measured=lambda name: by_name[name].keep(),
                after_round=after_round,
                progress=stage.update,
            )
        if images == request.batches[0]:
            self._spans_of_runs = {name: run.taken[-1] for name, run in by_name.items()}
        take_in(timings, {run.name: run.host_waits() for run in runs})
        return absent


def about_bundle(bundle: Bundle) -> dict[str, Any]:
    """What the manifest says that figures depend on."""
    manifest, contract = bundle.manifest, bundle.manifest.geometry.contract
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
        "size": manifest.geometry.latents.size,
    }
