"""The policy a bundle runs: its default one or one by name, with the bundle's own options and plans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelaes_export.contract.manifest import Manifest
from accelaes_export.contract.schedules import read_schedule
from accelaes_export.contract.tensors import GraphContract
from accelaes_export.errors import InputError
from accelaes_export.policies import Dense, DiffSparse, Drift, LayerSchedule, ModelFacts, Plan, Policy, from_name
from accelaes_export.policies.plan_quality import PlanQuality, cheapest, require_level
from accelaes_export.policies.schedule import MOST_STEPS


def policy_for(
    manifest: Manifest, name: str | None = None, options: Mapping[str, Any] = MappingProxyType({})
) -> Policy:
    """The policy `name`, or the bundle's default, with `options`, and drift with the bundle's plan for its budget.

    The bundle's default options hold for its default policy, under what is given. InputError for a name or an
    option that doesn't exist.
    """
    defaults = manifest.defaults
    if name is None or name == defaults.policy:
        name, options = defaults.policy, defaults.policy_options | dict(options)
    given = options.get("schedule")
    if name == DiffSparse.name and isinstance(given, (str, Path)):
        options = {**options, "schedule": schedule_for(manifest, Path(given))}
    return from_name(name, options, ModelFacts(defaults.steps, manifest.sparse_fractions, defaults.plans))


def schedule_for(manifest: Manifest, path: Path) -> LayerSchedule:
    """The layer-wise schedule in a file.

    InputError for a file that isn't one, or was learned for other weights or another layer-wise step than the bundle's.
    """
    found, own = read_schedule(path), manifest.geometry.contract.layerwise
    if own is None:
        raise InputError(
            f"{path} is for a layer-wise step, and this bundle has none: build it again with --layerwise "
            f"{found.schedule.ranking}."
        )
    if found.schedule.ranking != own.ranking:
        raise InputError(
            f"{path} was learned for tokens ranked by {found.schedule.ranking}, and this bundle ranks them by "
            f"{own.ranking}: build it with --layerwise {found.schedule.ranking}, or learn another schedule."
        )
    if found.schedule.parts != own.labels:
        raise InputError(
            f"{path} has shares for the parts {', '.join(found.schedule.parts[:4])} ... ({len(found.schedule.parts)}), "
            f"and this bundle's layer-wise step has {', '.join(own.labels[:4])} ... ({len(own.labels)}): give a "
            "schedule of this model."
        )
    if found.weights_sha256 != manifest.source.weights_sha256:
        raise InputError(
            f"{path} was learned for other weights ({found.weights_sha256[:12]}) than this bundle's "
            f"({manifest.source.weights_sha256[:12]}): learn one for these with tune --method diffsparse."
        )
    return found.schedule


def policy_of_quality(manifest: Manifest, level: str) -> Policy:
    """The cheapest policy that keeps a quality level: drift by the budget whose measured plan does, else dense.

    InputError for another level, or a bundle whose plans weren't measured on its checkpoint.
    """
    defaults = manifest.defaults
    budget = cheapest(defaults.plans, require_level(level), defaults.steps)
    return Dense() if budget is None else policy_for(manifest, Drift.name, {"budget": budget})


def quality_of(manifest: Manifest, policy: Policy, symbols: str) -> PlanQuality | None:
    """What was measured of a policy's plan on the bundle's checkpoint; None: nothing was."""
    learned = policy.extrapolation.coefficients
    if policy.name != Drift.name:
        return None
    own = (plan for plan in manifest.defaults.plans.values() if (plan.symbols, plan.coefficients) == (symbols, learned))
    return next((plan.quality for plan in own), None)


def steps_alone(policy: Policy | None, asked: int | None, default: int) -> int:
    """T of a run: what is asked for, or else what its policy was made for, or else the bundle's `default`.

    InputError for more than there are noise levels a model was trained at.
    """
    if asked is not None and asked > MOST_STEPS:
        raise InputError(
            f"{asked} steps were asked for; allowed are up to {MOST_STEPS}, the noise levels these models were trained "
            "at: ask for fewer."
        )
    return asked if asked is not None else (policy and policy.own_steps) or default


def steps_beside(policy: Policy, asked: int | None, default: int) -> int:
    """T of a policy among others that it is compared with.

    What is asked for holds for all but those whose length is their own option (fewer-steps, a plan by hand); where
    nothing is asked, each has what it was made for, else the bundle's.
    """
    return steps_alone(policy, None if policy.own_steps and policy.keeps_steps else asked, default)


def plan_for(manifest: Manifest, policy: Policy, steps: int) -> Plan:
    """The policy's plan of T = `steps`; InputError where it has none, or the model lacks the text it needs."""
    plan = policy.plan(steps, manifest.sparse_fractions, manifest.range_shares)
    require_layers(plan, manifest.geometry.contract)
    require_text_for(policy, plan, manifest.geometry.contract)
    return plan


def require_layers(plan: Plan, contract: GraphContract) -> None:
    """InputError where the plan has shares for other parts than the bundle's layer-wise step."""
    own = contract.layerwise
    if plan.rows and own is None:
        raise InputError(
            "The plan has layer-wise steps, and this bundle was built without them: build it again with --layerwise."
        )
    if plan.rows and own is not None and len(plan.rows[0]) != len(own.parts):
        raise InputError(
            f"The plan has shares for {len(plan.rows[0])} parts, and this bundle's layer-wise step has "
            f"{len(own.parts)}: give a schedule of this model."
        )


def require_text_for(policy: Policy, plan: Plan, contract: GraphContract) -> None:
    """InputError where the plan needs a mask from the text and the model has none."""
    if policy.affinity_steps(plan) and "affinity" not in contract.has:
        raise InputError(
            f"Policy {policy.name} needs a mask from the text, and this model has no text; take a policy without a "
            "mask, such as drift, ras, stepcache or dense."
        )
