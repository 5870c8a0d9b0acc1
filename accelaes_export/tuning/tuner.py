"""`tune`: plans and coefficients of drift's for a bundle's checkpoint, fitted on prompts and measured on others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import get_args

from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.tuning import Method, TunedPlan, Tuning
from accelaes_export.errors import InputError
from accelaes_export.options import require_guidance, require_seed
from accelaes_export.policies import Drift, Plan, PolicyWithPlan, listed_budgets
from accelaes_export.policies.schedule import require_whole
from accelaes_export.progress import BuildProgress, Silent
from accelaes_export.runtime.generate import load_pipeline
from accelaes_export.runtime.policy_choice import policy_for
from accelaes_export.tuning.given import learned_on, require_prompts
from accelaes_export.tuning.kept import Kept, versions
from accelaes_export.tuning.recording import Recording, Schedules
from accelaes_export.tuning.work import FINALISTS, Candidate, Searching, Work

TEACHER_STEPS = 160
EVALUATIONS = 96
SEARCHED_ON = 5, 24
"""Pictures that a plan is fitted on while plans are searched: few at first, and more where that is promising."""

LONGEST = 40
"""Steps of a searched plan; and at most half the teacher's."""


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
        method: "search" looks for plans as well, "fit" takes them as they are.
        evaluations: plans that a search tries for each budget.
        plans: these are fitted, in place of budgets' own and of a search, each for the budget that it costs.

    Raises:
        InputError: for a number out of range or too few prompts.
    """

    prompts: tuple[str, ...]
    budgets: tuple[float, ...] = ()
    held_out: float = 0.25
    guidance: float | None = None
    seed: int = 0
    teacher_steps: int = TEACHER_STEPS
    checkpoint: str | None = None
    method: Method = "search"
    evaluations: int = EVALUATIONS
    plans: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_seed(self.seed)
        if self.guidance is not None:
            require_guidance(self.guidance)
        require_prompts(len(self.prompts), self.held_out)
        if bool(self.budgets) == bool(self.plans):
            raise InputError("Give budgets, such as --budgets 8,12, or plans, such as --plan DDDDDDDD: one of both.")
        if self.method not in get_args(Method):
            raise InputError(f"The method is {self.method!r}; allowed are {', '.join(get_args(Method))}.")
        require_whole("evaluations", self.evaluations, at_least=1)

    @property
    def searches(self) -> bool:
        """Whether plans are looked for."""
        return self.method == "search" and not self.plans

    @property
    def searching(self) -> Searching:
        return Searching(self.evaluations, SEARCHED_ON, min(LONGEST, self.teacher_steps // 2), self.seed)

    @property
    def fitted_on(self) -> int:
        """How many prompts are."""
        return learned_on(len(self.prompts), self.held_out)


def check(bundle: Bundle, request: TuningRequest) -> None:
    """InputError for what can't be tuned on this bundle. Loads nothing."""
    for candidate in _candidates(bundle, request):
        if len(candidate.symbols) >= request.teacher_steps:
            raise InputError(
                f"The teacher has {request.teacher_steps} steps, and the plan for budget {candidate.budget:g} "
                f"has {len(candidate.symbols)}: give the teacher more, such as {TEACHER_STEPS}."
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
    candidates = _candidates(bundle, request)
    pipe = load_pipeline(bundle, request.checkpoint)
    pipe.set_progress_bar_config(disable=True)
    recording = Recording(pipe, bundle, scale)
    with progress.stage("record", f"{len(request.prompts)} prompts"):
        schedules = Schedules(recording, request.prompts[0])
        for candidate in candidates:
            schedules.of(len(candidate.symbols))
        conditions = recording.conditions(request.prompts, request.seed)
    today = date.today().isoformat()
    work = Work(
        bundle,
        scale,
        conditions,
        request.fitted_on,
        recording,
        schedules,
        Kept(keep),
        progress,
        versions(),
    )
    work.teach(request.teacher_steps)
    work.measure_dense(manifest.defaults.steps, request.teacher_steps, today, request.prompts[0])
    plans: dict[float, TunedPlan] = {}
    for candidate in candidates:
        known = [plan.schedule.symbols for plan in plans.values()][::-1]
        finalists = [candidate.symbols]
        if request.searches:
            finalists = work.searched(candidate, known, request.searching)[:FINALISTS]
        plans[candidate.budget] = work.tuned(candidate, finalists)
    return Tuning(
        model=manifest.model,
        family=manifest.family,
        weights_sha256=manifest.source.weights_sha256,
        size=dict(manifest.geometry.latents.size),
        tokens=manifest.geometry.latents.tokens,
        guidance=scale,
        buckets=manifest.sparse_fractions,
        plans=plans,
        method="search" if request.searches else "fit",
        evaluations=request.evaluations if request.searches else 0,
        prompts=request.fitted_on,
        held_out=len(conditions) - request.fitted_on,
        seed=request.seed,
        teacher_steps=request.teacher_steps,
        date=today,
        versions=versions(),
    )


def _candidates(bundle: Bundle, request: TuningRequest) -> list[Candidate]:
    """In the order of their budgets."""
    if not request.plans:
        return [_candidate(bundle, budget) for budget in sorted(request.budgets)]
    found: dict[float, Candidate] = {}
    for symbols in request.plans:
        if len(symbols) < 2:
            raise InputError(f"The plan {symbols!r} is too short; a plan has at least two steps: give a longer one.")
        cost = Plan(symbols, bundle.manifest.sparse_fractions).cost
        if cost in found:
            raise InputError(
                f"The plans {found[cost].symbols} and {symbols} both cost {cost:g} dense steps, and a budget has one "
                "plan; tune them one by one."
            )
        found[cost] = replace(_candidate(bundle, cost), symbols=symbols)
    return [found[cost] for cost in sorted(found)]


def _candidate(bundle: Bundle, budget: float) -> Candidate:
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
    return Candidate(budget, bare, symbols)


def budgets_of(bundle: Bundle) -> tuple[float, ...]:
    """Those that the bundle has plans for."""
    defaults = bundle.manifest.defaults
    return listed_budgets(defaults.steps, defaults.plans)
