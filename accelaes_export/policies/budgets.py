"""Policies by name on one model, which may bring plans of its own: what `budget` means there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from accelaes_export.policies.base import Policy
from accelaes_export.policies.drift import Drift
from accelaes_export.policies.drift_plans import SHARE, TUNED, DriftSchedule, require_budget, tuned_options
from accelaes_export.policies.given import DefaultPlan, WithPlan
from accelaes_export.policies.registry import named

FEW_STEPS = 8
"""Models made for at most so many steps are distilled to them: no budget gives them more."""


def for_model(
    name: str,
    options: Mapping[str, Any],
    *,
    steps: int,
    buckets: Sequence[float],
    plans: Mapping[float, DriftSchedule],
) -> Policy:
    """The policy called `name` with `options`, as `named` makes it, and drift with the model's plan for its budget.

    Without one for exactly this budget, a model of many steps gets what `Drift` itself has, and one of at most
    FEW_STEPS a plan of the same rule in its own steps. Options and plans given by hand stay as they are, and runs of
    another number of steps than the plan's get the rule's.

    Args:
        steps: T of the model's own runs; without a budget, drift's is SHARE of them.
        buckets: its fractions n/N below 1, ascending.
        plans: by budget.

    Raises:
        InputError: as `named`, and for a budget below one dense step (the message lists those with plans).
    """
    if name == Drift.name:
        require_budget(options.get("budget"), listed_budgets(steps, plans))
    asked = named(name, **options)
    drift = asked.policy if isinstance(asked, WithPlan) else asked
    if not isinstance(drift, Drift):
        return asked
    budget = SHARE * steps if drift.budget is None else drift.budget
    listed = next((plan for known, plan in plans.items() if math.isclose(known, budget)), None)
    if listed is None and steps > FEW_STEPS:
        return asked
    far = listed or tuned_options(budget)
    drift = replace(
        drift,
        theta=far.theta if drift.theta is None else drift.theta,
        trend=far.trend if drift.trend is None else drift.trend,
        cache_reach=far.cache_reach if drift.cache_reach is None else drift.cache_reach,
    )
    if isinstance(asked, WithPlan):
        return WithPlan(drift, asked.symbols)
    return DefaultPlan(drift, listed.symbols if listed else str(drift.plan(steps, buckets)))


def listed_budgets(steps: int, plans: Mapping[float, DriftSchedule]) -> tuple[float, ...]:
    """The budgets there are plans for on a model of T = `steps`, ascending: its own, and drift's unless T is small."""
    return tuple(sorted({*plans, *(TUNED if steps > FEW_STEPS else ())}))
