"""Drift: the tokens whose predictions have probably moved farthest are computed, and everything else extrapolated."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from accelaes_export.checks import is_finite
from accelaes_export.errors import InputError, TooFewStepsError
from accelaes_export.policies.base import (
    BasePolicy,
    Extrapolation,
    ModelFacts,
    SpatialGuidance,
    require_spatial_guidance,
)
from accelaes_export.policies.coefficients import Coefficients
from accelaes_export.policies.drift_plans import (
    FEW_STEPS,
    SHARE,
    TUNED,
    DriftSchedule,
    drift_plan,
    listed_budgets,
    require_budget,
    tuned_options,
    tuned_steps,
)
from accelaes_export.policies.plan import Plan, StepKind
from accelaes_export.policies.schedule import require_steps, require_whole
from accelaes_export.policies.words import THRESHOLD, Scope, WordScoring

if TYPE_CHECKING:
    from accelaes_export.policies.base import Policy, Selector


_EXTRAPOLATES = {"theta", "trend", "calibrated", "order", "clock", "stale_reach", "cache_reach"}
"""Options that coefficients stand in for, or were fitted beside."""


@dataclass(frozen=True)
class Drift(BasePolicy):
    """Focus tokens by (change of a token's prediction per step) x (steps since it ran), anew at every SPARSE step.

    Attributes:
        budget: what a run may cost, in dense steps; None: SHARE of the steps. Plans are in `drift_plans`, and what
            theta, trend and cache_reach are where they are None: the coarser the steps, the less is extrapolated.
        theta: θ, how far past each step the prediction fed to the scheduler is extrapolated, in steps.
        trend: how much of a prediction's change is carried on, 0 to 1.
        calibrated: whether that is cut down to what has come true so far in the run, in each row by itself.
        order: 1 extrapolates tokens linearly from their own last two predictions, 2 through three.
        clock: "step" or "sigma", what extrapolation and drift are counted in.
        stale_reach: furthest a token is extrapolated that the latest computed step left out, in gaps; 0 holds it, None:
            as the others.
        cache_reach: furthest the background's keys and values are extrapolated, in gaps; 0: taken as they are, which
            halves the memory they take.
        mask_weight: exponent w of the affinity to the prompt's aesthetic words: score x (m / mean m)^w; 0: no mask.
        mask_step: the dense step whose affinity that is.
        spatial_cfg: region-wise guidance (Eq. 11) on the half of the tokens with the largest affinity, or None.
        threshold, scope: of the mask's words, as AccelAes has them.

    Raises:
        InputError: for an option outside its range.
    """

    budget: float | None = None
    theta: float | None = None
    trend: float | None = None
    calibrated: bool = True
    order: int = 1
    clock: Literal["step", "sigma"] = "step"
    stale_reach: float | None = 0.0
    cache_reach: float | None = None
    mask_weight: float = 0.0
    mask_step: int = 1
    spatial_cfg: SpatialGuidance | None = None
    threshold: float = THRESHOLD
    scope: Scope = "phrase"

    name: ClassVar[str] = "drift"

    def __post_init__(self) -> None:
        require_budget(self.budget, TUNED)
        if not is_finite(self.mask_weight) or self.mask_weight < 0:
            raise InputError(f"mask_weight is {self.mask_weight!r}; give a number of at least 0.")
        require_whole("mask_step", self.mask_step, at_least=0)
        if self.order == 0:
            raise InputError("order is 0, but drift is the change between a token's last two predictions; give 1 or 2.")
        require_spatial_guidance(self.spatial_cfg)
        _ = self.extrapolation, self.word_scoring  # their own checks

    @classmethod
    def check_on(cls, options: Mapping[str, Any], model: ModelFacts) -> None:
        """InputError, which lists the budgets the model has plans for, for a budget below one dense step."""
        require_budget(options.get("budget"), listed_budgets(model.steps, model.plans))

    def suited_to(self, model: ModelFacts) -> Policy:
        """With the distances of the model's plan for the budget where they weren't given.

        Without a plan for exactly this budget, a model of many steps keeps what TUNED has, and one of at most FEW_STEPS
        takes the entry nearest to it.
        """
        budget, listed = self._schedule_of(model)
        if listed is None and model.steps > FEW_STEPS:
            return self
        far = listed or tuned_options(budget)
        return replace(
            self,
            theta=far.theta if self.theta is None else self.theta,
            trend=far.trend if self.trend is None else self.trend,
            cache_reach=far.cache_reach if self.cache_reach is None else self.cache_reach,
        )

    def default_symbols(self, model: ModelFacts) -> str | None:
        """The model's plan for the budget, or for a model of few steps one of the same rule in its own steps."""
        _, listed = self._schedule_of(model)
        if listed is not None:
            return listed.symbols
        return str(self.plan(model.steps, model.buckets)) if model.steps <= FEW_STEPS else None

    def learned(self, model: ModelFacts, given: Collection[str]) -> Coefficients | None:
        """The coefficients of the model's plan for the budget."""
        _, listed = self._schedule_of(model)
        return None if listed is None or _EXTRAPOLATES & set(given) else listed.coefficients

    def _schedule_of(self, model: ModelFacts) -> tuple[float, DriftSchedule | None]:
        """The budget, on a model that may have been asked for none, and its plan for exactly that."""
        budget = SHARE * model.steps if self.budget is None else self.budget
        return budget, next((plan for known, plan in model.plans.items() if math.isclose(known, budget)), None)

    @property
    def extrapolation(self) -> Extrapolation:
        tuned = tuned_options(self.budget)
        return Extrapolation(
            self.order,
            self.clock,
            stale_reach=self.stale_reach,
            theta=tuned.theta if self.theta is None else self.theta,
            trend=tuned.trend if self.trend is None else self.trend,
            calibrated=self.calibrated,
            cache_reach=tuned.cache_reach if self.cache_reach is None else self.cache_reach,
        )

    @property
    def word_scoring(self) -> WordScoring:
        return WordScoring(self.threshold, self.scope)

    @property
    def spatial_guidance(self) -> SpatialGuidance | None:
        return self.spatial_cfg

    @property
    def own_steps(self) -> int | None:
        """The tuned plan's for the budget; None without one, as any number will do."""
        return None if self.budget is None else tuned_steps(self.budget)

    def plan(self, steps: int, buckets: Sequence[float], shares: Sequence[float] = ()) -> Plan:
        """The plan for the budget in so many steps: the tuned one where it has as many, or one made by the same rule.

        Raises:
            TooFewStepsError: for fewer than 2 steps, or a mask step the plan doesn't leave dense.
        """
        require_steps(steps)
        symbols = drift_plan(steps, SHARE * steps if self.budget is None else self.budget, buckets)
        plan = Plan(symbols, tuple(buckets))
        if self._masked and self.mask_step >= len(symbols) - len(symbols.lstrip("D")):
            raise TooFewStepsError(
                f"mask_step is {self.mask_step}, but the plan {symbols} isn't dense up to there: give a smaller "
                "mask_step, or mask_weight 0."
            )
        return plan

    @property
    def _masked(self) -> bool:
        return self.mask_weight > 0 or self.spatial_cfg is not None

    def without_mask(self) -> Policy:
        """Chooses by drift alone."""
        return replace(self, mask_weight=0, spatial_cfg=None)

    def selector(self) -> Selector | None:
        from accelaes_export.policies.moving import LargestDrift  # loads torch, which a plan alone doesn't need

        return LargestDrift(self.mask_weight, self.mask_step if self._masked else None)

    def affinity_steps(self, plan: Plan) -> frozenset[int]:
        """The mask step, where the mask plays a part: at SPARSE steps of the plan, or for spatial guidance."""
        sparse = plan.count(StepKind.SPARSE) > 0
        return frozenset({self.mask_step}) if self._masked and (sparse or self.spatial_cfg) else frozenset()
