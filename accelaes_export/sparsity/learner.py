"""`tune --method diffsparse`: a layer-wise schedule for a checkpoint, learned on prompts and measured on others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from accelaes_export.building.verification import source_model
from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.schedules import Distances, ScheduleFile, ScheduleMethod
from accelaes_export.contract.tensors import Layerwise
from accelaes_export.errors import InputError
from accelaes_export.options import require_guidance, require_seed
from accelaes_export.policies import Dense, DiffSparse
from accelaes_export.policies.layer_schedule import CANDIDATES, LayerSchedule
from accelaes_export.policies.schedule import require_steps, require_whole
from accelaes_export.progress import BuildProgress, Silent
from accelaes_export.runtime.generate import load_pipeline
from accelaes_export.sparsity.baselines import METHODS
from accelaes_export.sparsity.distances import Distance, of_latents
from accelaes_export.sparsity.student import Student
from accelaes_export.sparsity.table import Chosen, Table
from accelaes_export.sparsity.training import Learning, Lesson, learned
from accelaes_export.tuning.given import learned_on, require_prompts
from accelaes_export.tuning.kept import Kept, fingerprint, key_of, versions
from accelaes_export.tuning.recording import Conditions, Recording, Schedule, Schedules, together
from accelaes_export.tuning.walk import ended

COMPARED_ON = 8
"""Pictures that schedules are compared on while others are tried."""

_SAVED_EVERY = 30.0
"""Seconds: what a kill loses at most of a lesson."""


@dataclass(frozen=True)
class SparsityRequest:
    """What is to be learned.

    Attributes:
        prompts: every picture from a noise of its own.
        budget: share of the parts' tokens that may be computed, all steps together: .46 saves 54 %.
        steps: T of the schedule.
        method: diffsparse, or one of those to compare it with.
        evaluations: schedules that random and evolutionary try.
        learning: how diffsparse learns.
        held_out: the share of the prompts that nothing is learned on.
        guidance: the bundle's own scale if None.
        seed: of the first picture's noise, and of what is drawn by chance.
        checkpoint: where it isn't where the manifest says.

    Raises:
        InputError: for a number out of range, too few prompts or another method.
    """

    prompts: tuple[str, ...]
    budget: float
    steps: int = 20
    method: ScheduleMethod = "diffsparse"
    evaluations: int = 96
    learning: Learning = field(default_factory=Learning)
    held_out: float = 0.25
    guidance: float | None = None
    seed: int = 0
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        require_seed(self.seed)
        require_steps(self.steps)
        require_whole("evaluations", self.evaluations, at_least=2)
        require_whole("iterations", self.learning.iterations, at_least=1)
        if self.guidance is not None:
            require_guidance(self.guidance)
        if self.method not in get_args(ScheduleMethod):
            raise InputError(f"The method is {self.method!r}; allowed are {', '.join(get_args(ScheduleMethod))}.")
        if not 0 < self.budget <= 1:
            raise InputError(
                f"The budget is {self.budget!r}; layer-wise schedules take a share of the tokens above 0, at most 1, "
                "such as 0.46."
            )
        require_prompts(len(self.prompts), self.held_out)

    @property
    def learned_on(self) -> int:
        """How many prompts are."""
        return learned_on(len(self.prompts), self.held_out)


def check(bundle: Bundle, request: SparsityRequest) -> Layerwise:
    """The bundle's layer-wise step; InputError for what can't be learned on this bundle. Loads nothing."""
    own = bundle.manifest.geometry.contract.layerwise
    if own is None:
        raise InputError(
            "Layer-wise schedules are learned on bundles with a layer-wise step, and this one was built without: build "
            "it again with --layerwise similarity, toca or norm."
        )
    Table.of(request.steps, len(own.parts), CANDIDATES, request.budget)
    return own


def learn(
    bundle: Bundle,
    request: SparsityRequest,
    progress: BuildProgress | None = None,
    *,
    distance: Callable[[Any], Distance] = lambda pipe: of_latents(),
    keep: Path | None = None,
) -> ScheduleFile:
    """Find a schedule, and measure it.

    Args:
        distance: from the pipeline, what is to be small.
        keep: a folder for what is done, so that the same call goes on where it was stopped; the caller removes it.

    Raises:
        InputError: what can't be learned: a family guided by two calls, or a scheduler that isn't Euler's.
        BundleError, MissingComponentError: an engine or pipeline that can't be opened.
        WriteError: the folder can't be written.
    """
    progress = progress or Silent()
    own, manifest = check(bundle, request), bundle.manifest
    scale = manifest.defaults.guidance if request.guidance is None else request.guidance
    pipe = load_pipeline(bundle, request.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    measure = distance(pipe)
    recording = Recording(pipe, bundle, scale)
    with progress.stage("record", f"{len(request.prompts)} prompts"):
        schedule = Schedules(recording, request.prompts[0]).of(request.steps)
        conditions = recording.conditions(request.prompts, request.seed)
    table = Table.of(request.steps, len(own.parts), CANDIDATES, request.budget)
    work = _Pictures(bundle, own, conditions, request, schedule, scale, table, measure)
    with progress.stage("dense", f"{len(conditions)} pictures of {request.steps} steps"):
        work.teach()
    kept, key = Kept(keep), work.key(request)
    if request.method == "diffsparse":
        chosen = _lesson(work, request, kept, key, progress)
    else:
        chosen = _tried(work, request, kept, key, progress)
    with progress.stage("measure", f"{len(conditions) - request.learned_on} other pictures"):
        found, even = work.measured(chosen), work.measured(table.even())
    return ScheduleFile(
        model=manifest.model,
        family=manifest.family,
        weights_sha256=manifest.source.weights_sha256,
        size=dict(manifest.geometry.latents.size),
        tokens=manifest.geometry.latents.tokens,
        guidance=scale,
        budget=request.budget,
        method=request.method,
        distance=measure.name,
        schedule=work.schedule(chosen),
        measured=found,
        uniform=even,
        prompts=request.learned_on,
        held_out=len(conditions) - request.learned_on,
        evaluations=work.evaluations,
        seed=request.seed,
        date=date.today().isoformat(),
        versions=versions(),
    )


class _Pictures:
    """What schedules are learned and measured on; pictures that are learned on come first."""

    def __init__(
        self,
        bundle: Bundle,
        own: Layerwise,
        conditions: Sequence[Conditions],
        request: SparsityRequest,
        schedule: Schedule,
        scale: float,
        table: Table,
        distance: Distance,
    ) -> None:
        self._bundle, self._own, self._conditions = bundle, own, conditions
        self._schedule, self._scale, self._checkpoint = schedule, scale, request.checkpoint
        self._learned_on, self._distance = request.learned_on, distance
        self.table = table
        self.evaluations = 0

    def teach(self) -> None:
        """Draw all of them densely."""
        self._dense = ended(self._bundle, self._conditions, self._schedule, self._scale, Dense())

    def key(self, request: SparsityRequest) -> str:
        """Of what a search or lesson depends on."""
        files = {name: record.sha256 for name, record in self._bundle.manifest.files.items()}
        learning = [request.method, asdict(request.learning), request.learned_on, request.seed, self._distance.name]
        pictures = fingerprint(self._conditions)
        return key_of(files, self._scale, versions(), self._schedule.sigmas, asdict(self.table), learning, pictures)

    def schedule(self, chosen: Chosen) -> LayerSchedule:
        return self.table.schedule(chosen, self._own.ranking, self._own.labels)

    def distances(self, chosen: Chosen, pictures: slice) -> torch.Tensor:
        """[b]: how far pictures by this choice, drawn by the engine, are from dense ones."""
        policy = DiffSparse(self.schedule(chosen))
        found = ended(self._bundle, self._conditions[pictures], self._schedule, self._scale, policy)
        self.evaluations += 1
        with torch.no_grad():
            return self._distance.between(found, self._dense[pictures])

    def compared(self, chosen: Chosen) -> float:
        """How good a choice is, while others are tried."""
        return self.distances(chosen, slice(0, min(COMPARED_ON, self._learned_on))).mean().item()

    def measured(self, chosen: Chosen) -> Distances:
        """How good it is on pictures that nothing was learned on."""
        found = self.distances(chosen, slice(self._learned_on, None))
        return Distances(mean=found.mean().item(), worst=found.max().item())

    def student(self) -> Student:
        model = source_model(self._bundle.manifest, self._checkpoint)
        return Student(self._bundle.manifest, model, self._schedule, self.table.shares, self._scale)

    def loss(self, student: Student) -> Callable[[int, torch.Tensor], torch.Tensor]:
        """Of the pictures that are learned on, one by one."""
        own = together(self._conditions[: self._learned_on], 1)

        def of(k: int, choices: torch.Tensor) -> torch.Tensor:
            self.evaluations += 1
            return self._distance.between(student.run(own[k], choices), self._dense[k : k + 1]).mean()

        return of


def _lesson(work: _Pictures, request: SparsityRequest, kept: Kept, key: str, progress: BuildProgress) -> Chosen:
    """By DiffSparse; what is learned so far is kept every half minute."""
    lesson = Lesson(work.table, request.learned_on, request.learning)
    stopped_at = kept.state("lesson", key)
    if stopped_at is not None:
        lesson.restore(stopped_at)
    with progress.stage("load", "the checkpoint's transformer"):
        student = work.student()
    saved = time.monotonic()
    with progress.stage("learn", f"two stages, {lesson.iterations} pictures") as stage:

        def after(now: Lesson, loss: float) -> None:
            nonlocal saved
            near = "" if now.best is None else f", best {now.least:.4g}"
            stage.update(now.done / now.iterations, f"distance {loss:.4g}{near}")
            if time.monotonic() - saved > _SAVED_EVERY:
                kept.save("lesson", key, now.state())
                saved = time.monotonic()

        chosen = learned(lesson, work.loss(student), work.compared, request.learning.compare_every, after)
    kept.save("lesson", key, lesson.state())
    student.close()
    return chosen


def _tried(work: _Pictures, request: SparsityRequest, kept: Kept, key: str, progress: BuildProgress) -> Chosen:
    """By a method that tries schedules; what each came to is kept."""
    known = kept.distances("tried", key)
    with progress.stage(request.method, f"budget {request.budget:g}") as stage:
        tried = 0

        def distance(chosen: Chosen) -> float:
            nonlocal tried
            tried += 1
            stage.update(None, f"schedule {tried}")
            symbols = "".join(map(str, chosen.flatten()))
            return known.of(symbols, partial(work.compared, chosen))

        return METHODS[request.method](work.table, distance, request.evaluations, request.seed)
