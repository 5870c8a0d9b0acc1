"""Recipes' plans by step budget: what may be written, what ships, and where a bundle's user finds them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import accelaes_export as ax
from accelaes_export import recipes
from accelaes_export.cli.policy_options import labelled_policies
from accelaes_export.contract.manifest import SCHEMA_VERSION
from accelaes_export.errors import InputError
from accelaes_export.measure.quality.request import possible_policies
from accelaes_export.policies import Drift, ModelFacts, Policy, from_name
from accelaes_export.policies.drift_plans import DriftSchedule
from accelaes_export.recipes import BuildRecipe
from accelaes_export.runtime.policy_choice import policy_for
from tests.fake_bundle import fake_manifest, write_fake_bundle

DISTANCES = {"theta": 0.1, "trend": 0.5, "cache_reach": 0.25}


def recipe_with(plans: Any) -> BuildRecipe:
    data = recipes.load("sd3").model_dump(mode="json") | {"plans": plans}
    return recipes.parse(yaml.safe_dump(data), "mine.yaml")


def drift_of(recipe: BuildRecipe, budget: float | None) -> Policy:
    return from_name("drift", {"budget": budget}, ModelFacts(recipe.steps, recipe.buckets, recipe.plans))


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipes_plans_cost_their_budgets_and_are_what_drift_runs(name: str) -> None:
    recipe = recipes.load(name)
    assert list(recipe.plans) == sorted(recipe.plans)
    for budget, own in recipe.plans.items():
        fractions = {"D": 1.0, ".": 0.0} | dict(zip("abc", recipe.buckets, strict=False))
        cost = math.fsum(fractions[symbol] for symbol in own.symbols)
        assert budget - 0.5 <= cost <= budget + 1e-6, "what it may cost is spent"
        policy = drift_of(recipe, budget)
        assert policy.own_steps == len(own.symbols)
        assert str(policy.plan(len(own.symbols), recipe.buckets)) == own.symbols
        assert policy.extrapolation.theta == own.theta


@pytest.mark.parametrize("name", recipes.names())
@pytest.mark.parametrize("budget", [1, 2, 3, 3.5, 6, 11, 12, 30])
def test_every_recipe_has_a_plan_for_every_budget(name: str, budget: float) -> None:
    recipe = recipes.load(name)
    policy = drift_of(recipe, budget)
    plan = policy.plan(policy.own_steps or recipe.steps, recipe.buckets)
    assert plan.cost <= max(budget, 2) + 1e-6
    if recipe.steps <= 8:
        assert len(plan) == recipe.steps


def test_flux_schnell_runs_its_four_steps_for_a_budget_of_three() -> None:
    policy = drift_of(recipes.load("flux-schnell"), 3)
    assert policy.own_steps == 4
    assert policy.plan(4, (0.25, 0.5, 0.75)).cost == 3


def last_noise(name: str, steps: int) -> float:
    """σ (share of noise) where the last of `steps` steps begins, as the family's pipeline sets its scheduler."""
    import numpy as np
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    ramp = np.linspace(1.0, 1 / steps, steps)
    if name == "dit-xl-2":
        ddim = DDIMScheduler()
        ddim.set_timesteps(steps)
        return float((1 - ddim.alphas_cumprod[ddim.timesteps[-1]]).sqrt())
    if name.startswith("wan"):
        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        scheduler.set_timesteps(steps)
    elif name == "flux-dev":
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        scheduler.set_timesteps(sigmas=ramp, mu=1.15)
    elif name == "qwen-image":
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
        scheduler.set_timesteps(sigmas=ramp, mu=0.7)
    elif name == "flux-schnell":
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=ramp)
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(shift={"shapes": 2.0, "lumina-next": 1.0}.get(name, 3.0))
        scheduler.set_timesteps(steps)
    return float(scheduler.sigmas[-2])


@pytest.mark.parametrize("name", [name for name in recipes.names() if not name.startswith("pixart")])
def test_the_last_step_is_skipped_only_where_next_to_no_noise_is_left(name: str) -> None:
    recipe = recipes.load(name)
    for budget in (3, 3.5) if recipe.steps <= 8 else (6, 8, 10, 12, 14, 16):
        policy = drift_of(recipe, budget)
        T = policy.own_steps or recipe.steps
        noise = last_noise(name, T)
        assert noise < 0.025 or noise > 0.05, "no border case"
        assert policy.plan(T, recipe.buckets)[-1].computed == (noise > 0.05)


@pytest.mark.parametrize("name", ["pixart-alpha", "pixart-sigma", "wan2.1-1.3b"])
def test_theta_is_left_out_where_solvers_extrapolate_and_their_last_step_is_computed(name: str) -> None:
    recipe = recipes.load(name)
    assert {6, 8, 10, 12, 14, 16} <= set(recipe.plans)
    for own in recipe.plans.values():
        assert own.theta == 0 and own.symbols[-1] == "D"
        assert len(own.symbols) <= recipe.steps


class TestWriting:
    @pytest.mark.parametrize(
        ("plans", "said"),
        [
            ({12: {"symbols": "DDx", **DISTANCES}}, "plans.12: Step 2 of the plan is 'x'; allowed are"),
            ({12: {"symbols": "bDD", **DISTANCES}}, "plans.12: The plan starts with 'b'; its first step must be D"),
            ({2.5: {"symbols": "DDbb", **DISTANCES}}, "plans.2.5: DDbb costs 3 dense steps; leave some out"),
            ({0.5: {"symbols": "DD", **DISTANCES}}, "plans.0.5: a step budget is a number of at least 1"),
            ({math.nan: {"symbols": "DD", **DISTANCES}}, "plans.nan: a step budget"),
            ({math.inf: {"symbols": "DD", **DISTANCES}}, "plans.inf: a step budget"),
            ({12: {"symbols": "D", **DISTANCES}}, "plans.12: symbols is 'D'; a plan has at least two steps"),
            ({12: {"symbols": "DD", **DISTANCES, "theta": 1.5}}, "plans.12: theta is 1.5; give a number from 0 to 1"),
            ({12: {"symbols": "DD", **DISTANCES, "trend": -1}}, "plans.12: trend is -1.0; give a number from 0"),
            (
                {12: {"symbols": "DD", **DISTANCES, "cache_reach": math.inf}},
                "plans.12: cache_reach is inf; give",
            ),
            ({12: {"symbols": "DD", **DISTANCES, "order": 2}}, "plans.12.order: "),
            ({12: {"symbols": "DD"}}, "plans.12.theta: field required"),
            ({12: "DD"}, "plans.12: "),
            ({"twelve": {"symbols": "DD", **DISTANCES}}, "plans.twelve"),
            ([12], "plans: "),
        ],
    )
    def test_what_can_not_be_is_one_sentence_that_names_the_field(self, plans: Any, said: str) -> None:
        with pytest.raises(InputError, match=f"^mine.yaml: {said}") as caught:
            recipe_with(plans)
        assert "\n" not in str(caught.value)

    @given(st.text("D.abc", min_size=1, max_size=40).map(lambda rest: "D" + rest), st.floats(1, 41))
    def test_a_plan_is_taken_where_it_costs_no_more_than_its_budget(self, symbols: str, budget: float) -> None:
        cost = math.fsum({"D": 1, ".": 0, "a": 0.25, "b": 0.5, "c": 0.75}[symbol] for symbol in symbols)
        recipe = recipes.load("sd3")
        plans = {budget: {"symbols": symbols, **DISTANCES}}
        if cost <= budget:
            assert recipe.override(plans=plans).plans[budget].symbols == symbols
        else:
            with pytest.raises(InputError, match="costs"):
                recipe.override(plans=plans)

    def test_other_buckets_keep_what_plans_compute_and_leave_out_those_that_can_not_be(self) -> None:
        recipe = recipe_with({12: {"symbols": "DDb.", **DISTANCES}, 10: {"symbols": "DDa.", **DISTANCES}})
        assert list(recipe.plans) == [10, 12]
        moved = recipe.override(buckets="0.1,0.3,0.5")
        assert {budget: own.symbols for budget, own in moved.plans.items()} == {12: "DDc."}
        assert moved.plans[12].trend == 0.5
        assert recipe.override(buckets=(0.3,)).plans == {}
        given_both = recipe.override(buckets=(0.3,), plans={5: {"symbols": "DDa", **DISTANCES}})
        assert list(given_both.plans) == [5]
        assert recipe.override(batch=2).plans == recipe.plans


OWN = {3.0: DriftSchedule(symbols="DDbb", **DISTANCES), 12.0: DriftSchedule(symbols="DDDb.b.D.bbb.DbDbDb", **DISTANCES)}


class TestBundle:
    def manifest(self, **changes: Any) -> Any:
        return fake_manifest(defaults=fake_manifest().defaults.model_copy(update={"plans": OWN, **changes}))

    def test_plans_come_back_from_the_file(self, tmp_path: Path) -> None:
        path = write_fake_bundle(tmp_path / "own", defaults=self.manifest().defaults).path
        assert ax.open(path).manifest.defaults.plans == OWN

    def test_a_bundle_from_before_plans_opens_and_has_none(self, tmp_path: Path) -> None:
        path = write_fake_bundle(tmp_path / "old").path
        data = json.loads((path / "manifest.json").read_text())
        assert data["schema_version"] == SCHEMA_VERSION
        del data["defaults"]["plans"]
        (path / "manifest.json").write_text(json.dumps(data))
        manifest = ax.open(path).manifest
        assert manifest.defaults.plans == {}
        assert policy_for(manifest, "drift", {"budget": 12}) == Drift(budget=12)

    def test_its_plan_is_what_the_budget_means(self) -> None:
        policy = policy_for(self.manifest(), "drift", {"budget": 12})
        assert str(policy.plan(policy.own_steps, (0.25, 0.5))) == OWN[12].symbols
        assert policy_for(self.manifest(), "drift", {"budget": 10}) == Drift(budget=10)
        own = self.manifest(policy="drift", policy_options={"budget": 3, "stale_reach": 1.0})
        default = policy_for(own)
        assert str(default.plan(4, (0.25, 0.5))) == "DDbb" and default.extrapolation.stale_reach == 1.0
        assert policy_for(own, None, {"budget": 12}).own_steps == len(OWN[12].symbols)
        found, _ = possible_policies(own, None)
        assert found["drift"] == default
        labelled = labelled_policies(self.manifest(), "drift:budget=3,drift:budget=3:theta=0")
        assert [policy.extrapolation.theta for policy in labelled.values()] == [0.1, 0.0]
        assert all(policy.own_steps == 4 for policy in labelled.values())
