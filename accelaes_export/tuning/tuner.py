"""`tune`: the coefficients of drift's plans for a bundle's checkpoint, fitted on prompts and measured on others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.tuning import Measured, TunedPlan, Tuning
from accelaes_export.errors import InputError
from accelaes_export.options import require_guidance, require_seed
from accelaes_export.policies import Drift, DriftSchedule, Policy, PolicyWithPlan, from_name, listed_budgets, options_of
from accelaes_export.progress import BuildProgress, Silent, Stage
from accelaes_export.runtime.generate import load_pipeline
from accelaes_export.runtime.policy_choice import policy_for
from accelaes_export.tuning.kept import Kept, fingerprint, key_of
from accelaes_export.tuning.recording import Conditions, Recording, Schedule
from accelaes_export.tuning.walk import ended, fit, taught

FEWEST_PROMPTS = 4
TEACHER_STEPS = 160


@dataclass(frozen=True)
class TuningRequest:
    """What is to be tuned.

    Attributes:
        prompts: every picture from a noise of its own.
        budgets: of drift's plans, in dense steps.
        held_out: the share of the prompts that nothing is fitted on.
        guidance: the bundle's own scale if None.
        seed: of the first picture's noise.
        teacher_steps: dense steps of the runs that are taken for right.
        checkpoint: the pipeline, where it isn't where the manifest says.

    Raises:
        InputError: for a number out of range or too few prompts.
    """

    prompts: tuple[str, ...]
    budgets: tuple[float, ...]
    held_out: float = 0.25
    guidance: float | None = None
    seed: int = 0
    teacher_steps: int = TEACHER_STEPS
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        require_seed(self.seed)
        if self.guidance is not None:
            require_guidance(self.guidance)
        if not 0 < self.held_out < 1:
            raise InputError(f"The share held out is {self.held_out!r}; give a number between 0 and 1, such as 0.25.")
        if len(self.prompts) < FEWEST_PROMPTS:
            raise InputError(
                f"{len(self.prompts)} prompts were given, and tuning needs {FEWEST_PROMPTS} or more; some dozens "
                "are better."
            )
        if not self.budgets:
            raise InputError("No budget was given; name at least one, such as --budgets 8,12.")

    @property
    def fitted_on(self) -> int:
        """How many prompts are."""
        return len(self.prompts) - max(1, min(len(self.prompts) - 1, round(self.held_out * len(self.prompts))))


@dataclass(frozen=True)
class _Candidate:
    """A plan of drift's to be fitted: as it is now, and with which distances."""

    budget: float
    bare: Drift
    symbols: str

    @property
    def policy(self) -> Policy:
        return PolicyWithPlan(self.bare, self.symbols)

    @property
    def steps(self) -> int:
        return len(self.symbols)


def check(bundle: Bundle, request: TuningRequest) -> None:
    """InputError for what can't be tuned on this bundle. Loads nothing."""
    for budget in request.budgets:
        candidate = _candidate(bundle, budget)
        if candidate.steps >= request.teacher_steps:
            raise InputError(
                f"The teacher has {request.teacher_steps} steps, and the plan for budget {budget:g} has "
                f"{candidate.steps}: give the teacher more, such as {TEACHER_STEPS}."
            )


def tune(
    bundle: Bundle, request: TuningRequest, progress: BuildProgress | None = None, *, keep: Path | None = None
) -> Tuning:
    """Fit the plans of all budgets.

    Args:
        keep: a folder for what is done, so that the same tuning goes on where it was stopped; the caller removes it.

    Raises:
        InputError: what can't be tuned: a family guided by two calls, or a scheduler that isn't Euler's.
        BundleError, MissingComponentError: an engine or pipeline that can't be opened.
        WriteError: the folder can't be written.
    """
    progress = progress or Silent()
    check(bundle, request)
    manifest = bundle.manifest
    scale = manifest.defaults.guidance if request.guidance is None else request.guidance
    candidates = [_candidate(bundle, budget) for budget in request.budgets]
    pipe = load_pipeline(bundle, request.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    recording = Recording(pipe, bundle, scale)
    first = request.prompts[0]
    with progress.stage("record", f"{len(request.prompts)} prompts"):
        schedules = [recording.schedule(first, candidate.steps) for candidate in candidates]
        teacher = recording.schedule(first, request.teacher_steps)
        conditions = recording.conditions(request.prompts, request.seed)
    work = _Work(bundle, scale, conditions, request.fitted_on, Kept(keep), progress)
    there = work.taught(teacher, sorted({sigma for one in schedules for sigma in one.sigmas[1:]}, reverse=True))
    plans = {
        candidate.budget: work.tuned(candidate, schedule, teacher, there)
        for candidate, schedule in zip(candidates, schedules, strict=True)
    }
    return Tuning(
        model=manifest.model,
        family=manifest.family,
        weights_sha256=manifest.source.weights_sha256,
        size=dict(manifest.geometry.latents.size),
        tokens=manifest.geometry.latents.tokens,
        guidance=scale,
        buckets=manifest.sparse_fractions,
        plans=dict(sorted(plans.items())),
        prompts=request.fitted_on,
        held_out=len(conditions) - request.fitted_on,
        seed=request.seed,
        teacher_steps=request.teacher_steps,
        date=date.today().isoformat(),
        versions=_versions(),
    )


class _Work:
    """The pictures of a tuning, and what is done with them.

    Args:
        conditions: of all pictures, those that plans are fitted on first.
        fitted_on: how many these are.
    """

    def __init__(
        self,
        bundle: Bundle,
        scale: float,
        conditions: Sequence[Conditions],
        fitted_on: int,
        kept: Kept,
        progress: BuildProgress,
    ) -> None:
        self._bundle, self._scale, self._kept, self._progress = bundle, scale, kept, progress
        self._conditions, self._fitted_on = conditions, fitted_on
        self._learning, self._testing = conditions[:fitted_on], conditions[fitted_on:]
        files = {name: record.sha256 for name, record in bundle.manifest.files.items()}
        self._engine = key_of(files, scale, _versions())

    def taught(self, teacher: Schedule, at: Sequence[float]) -> dict[float, torch.Tensor]:
        """All pictures' latents [b, ...] at these sigmas of the teacher's run, some pictures at a time."""
        size = self._bundle.manifest.geometry.contract.batch
        parts = [self._conditions[first : first + size] for first in range(0, len(self._conditions), size)]
        found: list[Mapping[float, torch.Tensor]] = []
        with self._progress.stage(
            "teacher", f"{teacher.steps} dense steps of {len(self._conditions)} pictures"
        ) as stage:
            for part in parts:
                done = len(found) / len(parts)
                watch = partial(_tell, stage, done, len(parts) * teacher.steps)
                runs = self._bundle, part, teacher, self._scale
                key = key_of(self._engine, fingerprint(part), teacher.sigmas, at)
                found.append(self._kept.latents("teacher", key, partial(taught, *runs, at, watch)))
        return {sigma: torch.cat([own[sigma] for own in found]) for sigma in at}

    def tuned(
        self, candidate: _Candidate, schedule: Schedule, teacher: Schedule, there: Mapping[float, torch.Tensor]
    ) -> TunedPlan:
        """A plan with its coefficients, and what they gain on the pictures that are held out."""
        options = options_of(candidate.bare)
        key = key_of(
            *(self._engine, fingerprint(self._conditions), self._fitted_on, teacher.sigmas, schedule.sigmas),
            *(candidate.symbols, options),
        )
        made = self._kept.plan(f"plan-{candidate.budget:g}", key, partial(self._fitted, candidate, schedule, there))
        measured = made.measured
        self._progress.note(
            f"budget {candidate.budget:g}: {measured.before:.4g} from the teacher by hand, {measured.after:.4g} fitted "
            f"(worst picture {measured.worst_before:.4g}, {measured.worst_after:.4g})"
        )
        return made

    def _fitted(self, candidate: _Candidate, schedule: Schedule, there: Mapping[float, torch.Tensor]) -> TunedPlan:
        bare, symbols, runs = candidate.bare, candidate.symbols, (schedule, self._scale)
        right = {sigma: latents[: self._fitted_on] for sigma, latents in there.items()}
        with self._progress.stage("fit", f"budget {candidate.budget:g}, {symbols}") as stage:
            watch = partial(_tell, stage, 0.0, candidate.steps)
            given = self._bundle, self._learning, *runs, bare, symbols, right
            found = fit(*given, theta=bare.extrapolation.theta, watch=watch)
        learned = from_name("drift", options_of(bare) | {"plan": symbols, "learned": found.coefficients})
        end = there[schedule.sigmas[-1]][self._fitted_on :]
        with self._progress.stage("measure", f"budget {candidate.budget:g}, {len(self._testing)} held-out pictures"):
            before, after = (
                _errors(ended(self._bundle, self._testing, *runs, own), end) for own in (candidate.policy, learned)
            )
        own = bare.extrapolation
        return TunedPlan(
            schedule=DriftSchedule(symbols, own.theta, own.trend, own.cache_reach, found.coefficients),
            measured=Measured(before=before[0], worst_before=before[1], after=after[0], worst_after=after[1]),
        )


def _candidate(bundle: Bundle, budget: float) -> _Candidate:
    """Drift for this budget as the bundle has it, without coefficients that it may have been tuned to before."""
    manifest = bundle.manifest
    policy = policy_for(manifest, Drift.name, {"budget": budget})
    symbols = policy.symbols if isinstance(policy, PolicyWithPlan) else None
    bare = policy.policy if isinstance(policy, PolicyWithPlan) else policy
    assert isinstance(bare, Drift)
    if bare.mask_weight or bare.spatial_cfg is not None:
        raise InputError("Tuning is of drift without a mask and guidance by region; take a bundle with drift as it is.")
    if symbols is None:
        symbols = str(bare.plan(bare.own_steps or manifest.defaults.steps, manifest.sparse_fractions))
    extrapolation = bare.extrapolation
    bare = replace(bare, theta=extrapolation.theta, trend=extrapolation.trend, cache_reach=extrapolation.cache_reach)
    return _Candidate(budget, bare, symbols)


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("accelaes-export", "torch", "diffusers")}


def _tell(stage: Stage, before: float, steps: int, done: int) -> None:
    stage.update(before + done / steps)


def budgets_of(bundle: Bundle) -> tuple[float, ...]:
    """Those that the bundle has plans for."""
    defaults = bundle.manifest.defaults
    return listed_budgets(defaults.steps, defaults.plans)


def _errors(found: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """Root mean square distance, of all pictures and of the worst."""
    square = (found - wanted).square().flatten(1).mean(dim=1)
    return math.sqrt(square.mean().item()), math.sqrt(square.max().item())
