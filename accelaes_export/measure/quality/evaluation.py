"""An evaluation: every prompt and seed under every policy, policies by turns, streamed to disk and measured."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelaes_export import __version__
from accelaes_export.bundle.reading import Bundle
from accelaes_export.errors import InputError
from accelaes_export.files.writing import write_whole
from accelaes_export.measure.quality.folder import SUMMARY, EvaluationFolder, image_name
from accelaes_export.measure.quality.metric_names import load_metrics
from accelaes_export.measure.quality.metrics import Metric, Sample
from accelaes_export.measure.quality.report import DENSE, ImageRow, QualityReport, Words
from accelaes_export.measure.quality.request import EvaluationRequest
from accelaes_export.policies.base import Policy
from accelaes_export.progress import BuildProgress, Silent, Stage

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from accelaes_export.runtime.generate import GenerationResult
    from accelaes_export.runtime.report import RunReport


def evaluate(
    bundle: Bundle,
    request: EvaluationRequest,
    folder: Path,
    *,
    force: bool = False,
    progress: BuildProgress | None = None,
) -> QualityReport:
    """Make and measure every picture that isn't in `folder` yet, and sum up.

    Args:
        folder: new, empty, or of the same evaluation, which is then gone on with.
        force: remove another evaluation that lies there.

    Raises:
        InputError: what can't be right, found before anything is loaded, or another evaluation in `folder`.
        BundleError, MissingComponentError: an engine, pipeline or metric that can't be had here.
    """
    from accelaes_export.measure.profiling import machine
    from accelaes_export.measure.profiling.profile import about_bundle
    from accelaes_export.measure.quality.statistics import RESAMPLES
    from accelaes_export.measure.quality.summary import summarise

    progress = progress or Silent()
    manifest = bundle.manifest
    request.check(bundle)
    done = EvaluationFolder(folder, force=force)
    wanted = {"build_key": manifest.build_key, **request.as_dict(manifest)}
    done.check(wanted)
    device = bundle.session().device
    with progress.stage("metrics", ", ".join(request.metrics or ("all there are",))):
        metrics, absent = load_metrics(request.metrics, device)
    for one in absent:
        progress.note(f"{one.name} is left out: {one.reason}; {one.remedy}")
    wanted["metrics"] = [metric.name for metric in metrics]
    done.start(wanted)
    before = machine.observe(device)
    _Evaluation(bundle, request, done, metrics, progress).carry_out()
    after = machine.observe(device)
    abouts = tuple(metric.about() for metric in metrics)
    report = QualityReport(
        created_by=f"accelaes-export {__version__}",
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        bundle=about_bundle(bundle),
        request={**wanted, "folder": os.fspath(folder)},
        machine=machine.describe(device, machine.free_threads())
        | {"before": before.as_dict(), "after": after.as_dict()},
        notes=(*machine.doubts(before, after), *_cut(done.rows.values())),
        attempts=done.attempt + 1,
        resamples=RESAMPLES,
        policies=summarise(done.rows, request, manifest, abouts),
        metrics=abouts,
        absent=tuple(absent),
    )
    write_whole(folder / SUMMARY, report.model_dump_json(indent=1) + "\n")
    return report


@dataclass
class _Evaluation:
    """The loop over what isn't done."""

    bundle: Bundle
    request: EvaluationRequest
    folder: EvaluationFolder
    metrics: Sequence[Metric]
    progress: BuildProgress
    _pipe: Any = field(default=None, init=False)

    def carry_out(self) -> None:
        policies, rows = self.request.all_policies, self.folder.rows
        places = [(k, seed) for k in range(len(self.request.prompts)) for seed in self.request.seeds]
        total = len(places) * len(policies)
        if rows:
            self.progress.reused("pictures", f"{len(rows)} of {total} in {self.folder.path}")
        missing = [label for label in policies if any((label, *place) not in rows for place in places)]
        if not missing:
            return
        from accelaes_export.runtime.generate import load_pipeline

        with self.progress.stage("load", self.bundle.manifest.source.location):
            self._pipe = load_pipeline(self.bundle, self.request.checkpoint)
        with self.progress.stage("warm up", f"one picture of each policy: {', '.join(missing)}") as stage:
            for label in missing:  # engines and allocators are slow at first; that is nobody's own time
                stage.update(None, label)
                self._generate(policies[label], 0, self.request.seeds[0])
        try:
            with self.progress.stage("pictures", f"{total} into {self.folder.path}") as stage:
                for number, place in enumerate(places):
                    self._place(number, *place, stage, total)
        except KeyboardInterrupt:
            self.progress.note(
                f"{len(rows)} of {total} pictures are in {self.folder.path}; the same command goes on from there."
            )
            raise

    def _place(self, number: int, k: int, seed: int, stage: Stage, total: int) -> None:
        """All policies' pictures of one prompt and seed, those that aren't there, moments apart.

        Dense is first, as the others are measured against it; the policy after it changes from place to place, so that
        no policy always runs behind the same one.
        """
        positions = {label: position for position, label in enumerate(self.request.all_policies)}
        others = [label for label in positions if label != DENSE]
        first = number % len(others) if others else 0
        dense: tuple[Image, ...] | None = None
        for label in (DENSE, *others[first:], *others[:first]):
            row = self.folder.rows.get((label, k, seed))
            if row is None:
                done = len(self.folder.rows)
                stage.update(done / total, f"{done + 1} of {total}: prompt {k + 1}, seed {seed}, {label}")
                frames = self._picture(label, image_name(positions[label], label, k, seed), k, seed, dense)
                dense = frames if label == DENSE else dense
            elif label == DENSE and not self._whole(k, seed):
                dense = self.folder.frames(row)

    def _picture(self, label: str, name: str, k: int, seed: int, dense: tuple[Image, ...] | None) -> tuple[Image, ...]:
        """Make, measure and keep one picture."""
        started = time.perf_counter()
        result = self._generate(self.request.all_policies[label], k, seed)
        seconds = time.perf_counter() - started
        frames = tuple(frame.convert("RGB") for frame in result.frames)
        sample = Sample(self.request.prompts[k], seed, frames, dense, result.report, self.bundle.manifest)
        self.folder.add(self._row(label, k, sample, result, name, seconds), frames)
        return frames

    def _whole(self, k: int, seed: int) -> bool:
        return all((label, k, seed) in self.folder.rows for label in self.request.all_policies)

    def _generate(self, policy: Policy, k: int, seed: int) -> GenerationResult:
        from accelaes_export.runtime.generate import generate

        return generate(
            self.bundle,
            self.request.prompts[k],
            policy=policy,
            steps=self.request.steps_of(policy, self.bundle.manifest),
            guidance=self.request.guidance,
            seed=seed,
            pipe=self._pipe,
        )

    def _row(self, label: str, k: int, sample: Sample, result: GenerationResult, name: str, seconds: float) -> ImageRow:
        from accelaes_export.measure.profiling.policies import flop_cost

        report, manifest = result.report, self.bundle.manifest
        return ImageRow(
            policy=label,
            prompt_index=k,
            prompt=sample.prompt,
            seed=sample.seed,
            file=name,
            steps=len(report.plan),
            plan=str(report.plan),
            kept=report.plan.kept,
            token_cost=report.cost,
            flop_cost=flop_cost(report, manifest.geometry),
            seconds=seconds,
            denoise_seconds=report.seconds,
            attempt=self.folder.attempt,
            metrics=dict(_measured(self.metrics, sample)),
            words=_words(report),
            focus_index=None if report.focus_index is None else tuple(report.focus_index[0].tolist()),
            affinity=None if report.affinity is None else _rounded(report.affinity[0]),
            cut=result.cut,
        )


def _cut(rows: Iterable[ImageRow]) -> tuple[str, ...]:
    """What to say of prompts that were longer than the text window."""
    cut = {row.prompt_index + 1: row.cut for row in rows if row.cut}
    if not cut:
        return ()
    first = min(cut)
    return (f"{len(cut)} prompt(s) were longer than the text window; of prompt {first} this was cut: {cut[first]!r}.",)


def _measured(metrics: Sequence[Metric], sample: Sample) -> Iterator[tuple[str, float]]:
    """What the metrics say of a picture, those that say something."""
    for metric in metrics:
        if metric.to_dense and sample.dense is None:
            continue
        found = metric.measure(sample)
        if found is None:
            continue
        if found != found:  # NaN
            raise InputError(f"Metric {metric.name} gave no number for prompt {sample.prompt!r}; leave it out.")
        yield metric.name, float(found)


def _words(report: RunReport) -> Words | None:
    if not report.words:
        return None
    of_prompt = report.words[0]
    return Words(
        scorer=of_prompt.scorer,
        fallback=of_prompt.fallback,
        words=tuple(of_prompt.words),
        weights=tuple(map(float, of_prompt.weights)),
    )


def _rounded(affinity: torch.Tensor) -> tuple[float, ...]:
    """4 digits are enough to draw."""
    return tuple(float(f"{value:.4g}") for value in affinity.tolist())
