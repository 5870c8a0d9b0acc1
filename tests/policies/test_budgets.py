"""Policies by name on one model: its own plan for a budget first, few-step models in their own steps, else drift's."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.errors import InputError
from accelaes_export.policies import (
    Drift,
    ModelFacts,
    Plan,
    PolicyWithDefaultPlan,
    PolicyWithPlan,
    from_name,
    listed_budgets,
    named,
    names,
    options_of,
)
from accelaes_export.policies.drift_plans import FEW_STEPS, SHARE, TUNED, DriftSchedule

BUCKETS = (0.25, 0.5, 0.75)
OWN = {
    9: DriftSchedule("DDb.b.D.bbb.DbD", theta=0.1, trend=0.5, cache_reach=0.2),
    12: DriftSchedule("DDDbDbDbDbDbDbbDb", theta=0.0, trend=0.4, cache_reach=0.0),
}

budgets = st.floats(1, 60)
bucket_sets = st.sampled_from([(), (0.5,), (0.25, 0.5), BUCKETS, (0.3,), (0.1, 0.9)])


def on_model(name="drift", *, steps=28, buckets=BUCKETS, plans=OWN, **options):
    return from_name(name, options, ModelFacts(steps, buckets, plans))


@pytest.mark.parametrize("budget", [9, 9.0, 12, 12 * (1 + 1e-12)])
def test_a_models_own_plan_for_exactly_the_budget_comes_first(budget):
    policy, own = on_model(budget=budget), OWN[round(budget)]
    assert policy.own_steps == len(own.symbols)
    assert str(policy.plan(len(own.symbols), BUCKETS)) == own.symbols
    found = policy.extrapolation
    assert (found.theta, found.trend, found.cache_reach) == (own.theta, own.trend, own.cache_reach)


@given(budgets.filter(lambda budget: all(abs(budget - own) > 1e-3 for own in OWN)), st.integers(FEW_STEPS + 1, 100))
def test_any_other_budget_is_drifts_as_if_the_model_had_no_plans(budget, steps):
    assert on_model(budget=budget, steps=steps) == named("drift", budget=budget) == Drift(budget=budget)


@given(st.integers(2, FEW_STEPS), st.none() | budgets, bucket_sets)
def test_no_budget_gives_a_few_step_model_more_steps_than_its_own(steps, budget, buckets):
    policy = on_model(steps=steps, budget=budget, buckets=buckets, plans={})
    assert policy.own_steps == steps
    plan = policy.plan(steps, buckets)
    wanted = SHARE * steps if budget is None else budget
    assert plan.cost <= max(wanted, 2) + 1e-6
    assert plan == Drift(budget=budget).plan(steps, buckets), "the same rule as at so many steps on any model"
    least = TUNED[min(TUNED)]
    if wanted <= min(TUNED):
        assert (policy.extrapolation.theta, policy.extrapolation.trend) == (least.theta, least.trend)


@pytest.mark.parametrize("steps", [4, 20, 28, 50])
def test_without_a_budget_it_is_the_share_of_the_models_own_steps(steps):
    policy = on_model(steps=steps)
    listed = math.isclose(SHARE * steps, 12)  # of 28 steps
    assert listed == (steps == 28)
    if listed:
        assert str(policy.plan(policy.own_steps, BUCKETS)) == OWN[12].symbols
    else:
        assert policy.plan(steps, BUCKETS) == Drift().plan(steps, BUCKETS)


@given(st.sampled_from([9, 12]), st.integers(2, 100), bucket_sets)
def test_a_run_of_another_number_of_steps_gets_a_plan_by_the_rule(budget, T, buckets):
    policy = on_model(budget=budget)
    if len(OWN[budget].symbols) != T:
        assert policy.plan(T, buckets) == Drift(budget=budget).plan(T, buckets)


def test_options_and_plans_given_by_hand_stay_as_they_are():
    policy = on_model(budget=9, theta=0.3, stale_reach=None)
    assert policy == PolicyWithDefaultPlan(
        Drift(budget=9, theta=0.3, trend=0.5, cache_reach=0.2, stale_reach=None), OWN[9].symbols
    )
    by_hand = on_model(budget=9, plan="DDb.D")
    assert by_hand == PolicyWithPlan(Drift(budget=9, theta=0.1, trend=0.5, cache_reach=0.2), "DDb.D")
    with pytest.raises(InputError, match="has 5 steps, but the run has 6"):
        by_hand.plan(6, BUCKETS)


def test_a_mask_that_a_models_plan_comes_too_late_for_is_refused():
    policy = on_model(budget=9, mask_weight=1.0, mask_step=2)
    with pytest.raises(InputError, match="mask after step 2, which must be D"):
        policy.plan(policy.own_steps, BUCKETS)


def test_other_policies_are_what_they_are_by_name():
    for name in names():
        if name not in ("drift", "diffsparse"):
            assert on_model(name, steps=4) == named(name)
    schedule = {"ranking": "norm", "parts": ["0.ff"], "keep": [[1], [0.5]]}
    assert on_model("diffsparse", steps=4, schedule=schedule) == named("diffsparse", schedule=schedule)
    assert on_model("fewer-steps", budget=9) == named("fewer-steps", budget=9)


@given(st.sampled_from([9, 12, 3.5]), st.sampled_from([4, 28]))
def test_its_options_say_by_hand_what_it_does(budget, steps):
    policy = on_model(budget=budget, steps=steps)
    again = named(policy.name, **options_of(policy))
    assert (again.own_steps, again.extrapolation) == (policy.own_steps, policy.extrapolation)
    T = policy.own_steps
    assert again.plan(T, BUCKETS) == policy.plan(T, BUCKETS)


@pytest.mark.parametrize("budget", [0.5, 0, -1, math.nan, math.inf, "many", True])
@pytest.mark.parametrize(
    ("steps", "plans", "said"),
    [
        (28, OWN, "there are plans for 6, 8, 9, 10, 12, 14, 16."),
        (4, {3: OWN[9]}, "there are plans for 3."),
        (4, {}, "from 1 to 1000."),
    ],
)
def test_a_budget_that_is_none_names_those_there_are_plans_for(budget, steps, plans, said):
    with pytest.raises(InputError, match="^budget is .*; give a number from 1 to 1000") as caught:
        on_model(steps=steps, plans=plans, budget=budget)
    assert str(caught.value).endswith(said)
    with pytest.raises(InputError, match=r"plans for 6, 8, 10, 12, 14, 16\.$"):
        Drift(budget=budget)


def test_listed_budgets_are_the_models_and_drifts_unless_it_has_few_steps():
    assert listed_budgets(28, OWN) == (6, 8, 9, 10, 12, 14, 16)
    assert listed_budgets(4, {3.5: OWN[9], 3: OWN[9]}) == (3, 3.5)


symbols = st.text("D.abc", max_size=20).map(lambda rest: "D" + rest)


@given(symbols, st.lists(st.sampled_from([0.1, 0.25, 0.4, 0.5, 0.75, 0.9]), unique=True).map(sorted))
def test_a_plan_moved_to_other_buckets_computes_the_same_or_is_refused(written, buckets):
    plan = Plan(written, BUCKETS)
    needed = {step.fraction for step in plan} - {0.0, 1.0}
    if needed <= set(buckets):
        moved = plan.on(buckets)
        assert [step.fraction for step in moved] == [step.fraction for step in plan]
        assert moved.buckets == tuple(buckets)
    else:
        with pytest.raises(InputError, match="bucket"):
            plan.on(buckets)


def test_drift_made_by_hand_knows_of_no_model():
    # Between the tuned plans for 8 and 10, and below the one for 6 in proportion.
    eight, ten, six = (len(TUNED[budget].symbols) for budget in (8, 10, 6))
    assert (Drift(budget=9).own_steps, Drift(budget=3).own_steps) == (math.floor((eight + ten) / 2 + 0.5), six / 2)
    assert (Drift(budget=100).own_steps, Drift(budget=1).own_steps) == (225, 2)
    assert str(Drift(budget=12).plan(28, BUCKETS)) == TUNED[12].symbols
