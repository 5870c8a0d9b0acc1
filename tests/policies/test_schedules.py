"""Plans of RAS, drift and the compared methods, and plans given by hand: rules read back from the symbols."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.errors import InputError
from accelaes_export.policies import (
    RAS,
    AccelAes,
    DeltaDiT,
    Dense,
    Drift,
    FewerSteps,
    Fora,
    Plan,
    PolicyWithPlan,
    SpatialGuidance,
    StepCache,
    StepKind,
    TaylorSeer,
    TeaCache,
    named,
)
from accelaes_export.policies.drift_plans import TUNED, drift_plan
from accelaes_export.policies.ras import ramped

BUCKETS = (0.25, 0.5, 0.75)
steps = st.integers(2, 100)
some_buckets = st.sampled_from([(), (0.5,), (0.25, 0.5), BUCKETS, (0.3,), (0.1, 0.9)])


@pytest.mark.parametrize(
    ("policy", "symbols", "cost"),
    [
        (RAS(), "DDDDbbbbbbbbDbbbbbbbDbbbbbbb", 17),
        (RAS(ratio=0.25), "DDDDaaaaaaaaDaaaaaaaDaaaaaaa", 11.5),
        (RAS(ramp=True), "DDDDccccccbbDbbbbbbbDbaaaaaa", 17),
        (RAS(resets=()), "DDDD" + "b" * 24, 16),
        (RAS(interval=2, order=1), "DDDD.b.b.b.bDb.b.b.bDb.b.b.b", 12),
        (Fora(), "D." * 14, 14),
        (Fora(interval=3), "D..D..D..D..D..D..D..D..D..D", 10),
        (TaylorSeer(), "DDD..D..D..D..D..D..D..D..D.", 11),
        (TaylorSeer(interval=2, warmup=4), "DDDD" + ".D" * 12, 16),
        (TeaCache(), "D" * 28, 28),
        (FewerSteps(budget=28), "D" * 28, 28),
    ],
)
def test_default_schedules_of_28_steps(policy, symbols, cost):
    plan = policy.plan(28, BUCKETS)
    assert (str(plan), plan.cost) == (symbols, cost)


@pytest.mark.parametrize(("T", "where"), [(28, {12, 20}), (30, {12, 21})])
def test_ras_resets_errors_where_the_method_says(T, where):
    plan = RAS().plan(T, BUCKETS)
    assert {i for i, step in enumerate(plan) if step.kind is StepKind.DENSE} == {0, 1, 2, 3} | where


@given(
    steps,
    st.fixed_dictionaries(
        {
            "ratio": st.sampled_from([0.25, 0.5, 0.75]),
            "ramp": st.booleans(),
            "warmup": st.integers(1, 8),
            "interval": st.integers(1, 4),
            "order": st.sampled_from([0, 1]),
            "resets": st.lists(st.floats(0, 1), max_size=3).map(tuple),
        }
    ),
)
def test_ras_is_dense_at_first_and_at_resets_and_sparse_or_skipped_elsewhere(T, options):
    plan = RAS(**options).plan(T, BUCKETS)
    first = max(options["warmup"], 2 if options["order"] and options["interval"] > 1 else 1)
    resets = {i for share in options["resets"] for i in range(T) if i - 1 < share * T - 1e-9 <= i}
    for i, step in enumerate(plan):
        skipped = options["interval"] > 1 and (i - first) % options["interval"] != options["interval"] - 1
        if i < first or i in resets:
            assert step.kind is StepKind.DENSE
        elif skipped and i < T - 1:
            assert step.kind is StepKind.SKIP
        else:
            assert step.kind is StepKind.SPARSE
    fractions = [step.fraction for step in plan if step.kind is StepKind.SPARSE]
    assert fractions == sorted(fractions, reverse=True), "the ratio only falls"
    if fractions:
        assert abs(sum(fractions) - options["ratio"] * len(fractions)) <= 0.125 + 1e-9, "half a gap of the buckets"
        if not options["ramp"]:
            assert set(fractions) == {options["ratio"]}


@given(
    st.lists(st.integers(1, 99), min_size=1, max_size=6, unique=True).map(lambda p: sorted(x / 100 for x in p)),
    st.floats(0, 1),
    st.integers(1, 100),
)
def test_a_ramp_meets_its_average_to_half_a_gap_over_all_its_steps(buckets, where, count):
    average = buckets[0] + where * (buckets[-1] - buckets[0])
    chosen = ramped(average, count, buckets)
    widest = max((high - low for low, high in itertools.pairwise(buckets)), default=0.0)
    assert len(chosen) == count and set(chosen) <= set(buckets)
    assert chosen == sorted(chosen, reverse=True)
    assert abs(math.fsum(chosen) - average * count) <= widest / 2 + 1e-6


@given(steps, st.floats(1, 120), some_buckets)
def test_drift_makes_a_plan_within_its_budget_for_any_run(T, budget, buckets):
    plan = Plan(drift_plan(T, budget, buckets), tuple(buckets))
    assert len(plan) == T
    assert str(plan).startswith("DD"), "two predictions of every token, before any is extrapolated"
    assert plan.cost <= max(budget, 2) + 1e-6
    if budget >= T:
        assert set(str(plan)) == {"D"}
    else:
        smallest = min((abs(b - 0.5), b) for b in buckets)[1] if buckets else 1.0
        assert plan.cost >= min(max(budget, 2) - max(smallest, 1 - smallest), T - 1), "what it may cost is spent"
    longest = max(map(len, re.findall(r"\.+", str(plan))), default=0)
    computed = sum(step.computed for step in plan)
    # Four steps at the beginning and two at the end aside.
    assert longest <= math.ceil(T / max(computed - 6, 1)), "skips are spread"


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(7, "DDDD.b.D.bD."), (9, "DDDD.b.D.b.b.D.bD."), (13, "DDD..b.D.b.b.D.b.b.D.b.b.D.bDD.")],
)
def test_between_the_tuned_budgets_a_coarse_schedule_begins_with_four_dense_steps_and_a_finer_one_with_three(
    budget, expected
):
    policy = Drift(budget=budget)
    plan = policy.plan(policy.own_steps, BUCKETS)
    assert (str(plan), plan.cost) == (expected, budget)


@pytest.mark.parametrize("budget", TUNED)
def test_tuned_plans_cost_their_budget_and_are_what_a_run_of_their_length_gets(budget):
    policy, tuned = Drift(budget=budget), TUNED[budget]
    plan = policy.plan(policy.own_steps, BUCKETS)
    assert (str(plan), plan.cost) == (tuned.symbols, budget)
    assert str(policy.plan(len(plan), (0.2, *BUCKETS))) == tuned.symbols.translate(str.maketrans("abc", "bcd"))
    assert set(str(policy.plan(len(plan), ()))) <= {"D", "."}, "without buckets there are no sparse steps"
    assert policy.extrapolation.theta == tuned.theta
    assert (policy.extrapolation.trend, policy.extrapolation.cache_reach) == (tuned.trend, tuned.cache_reach)


def test_how_far_is_extrapolated_follows_the_budget_and_can_be_given():
    budgets = sorted(TUNED)
    for low, high in itertools.pairwise(budgets):
        assert Drift(budget=low + 0.49 * (high - low)).extrapolation == Drift(budget=low).extrapolation
        assert Drift(budget=low + 0.51 * (high - low)).extrapolation == Drift(budget=high).extrapolation
    assert Drift(budget=1).extrapolation == Drift(budget=budgets[0]).extrapolation
    assert Drift().extrapolation == Drift(budget=12).extrapolation
    own = Drift(budget=8, theta=0.7, trend=0.4, cache_reach=0.0).extrapolation
    assert (own.theta, own.trend, own.cache_reach) == (0.7, 0.4, 0.0)


@given(steps, some_buckets, st.integers(0, 8))
def test_drift_wants_the_affinity_of_its_mask_step_only_where_a_mask_plays_a_part(T, buckets, mask_step):
    for policy in (Drift(mask_weight=0.5, mask_step=mask_step), Drift(spatial_cfg=SpatialGuidance(5, 2))):
        try:
            plan = policy.plan(T, buckets)
        except InputError as error:
            assert "mask_step" in str(error)
            continue
        used = policy.spatial_cfg is not None or plan.count(StepKind.SPARSE)
        assert policy.affinity_steps(plan) == (frozenset({policy.mask_step}) if used else frozenset())
        assert all(plan[i].kind is StepKind.DENSE for i in range(policy.mask_step + 1))
    assert Drift().affinity_steps(Drift().plan(T, buckets)) == frozenset()


POLICIES = [
    Dense(),
    StepCache(),
    AccelAes(mask_step=1),
    Drift(),
    RAS(mask_share=0.25),
    Fora(),
    TaylorSeer(),
    TeaCache(),
]


@given(steps, st.sampled_from(POLICIES))
def test_every_policy_plans_runs_of_2_to_100_steps(T, policy):
    plan = policy.plan(T, BUCKETS)
    assert len(plan) == T and plan[0].kind is StepKind.DENSE
    assert policy.own_steps is None, "any number of steps will do"


@given(st.text(alphabet="Dabc.", min_size=1, max_size=40), st.sampled_from(POLICIES))
def test_a_given_plan_is_carried_out_or_refused_with_a_reason(symbols, policy):
    given_plan = PolicyWithPlan(policy, symbols)
    assert given_plan.own_steps == len(symbols)
    sparse = re.search("[abc]", symbols)
    masked = {"accelaes": 1, "ras": 3}.get(policy.name)
    late = masked is not None and (
        len(symbols) <= masked or symbols[masked] != "D" or re.search("[abc]", symbols[:masked])
    )
    try:
        plan = given_plan.plan(len(symbols), BUCKETS)
    except InputError as error:
        if symbols[0] != "D":
            assert "first step must be D" in str(error)
        elif policy.selector() is None:
            assert sparse and f"policy {policy.name} chooses no focus tokens" in str(error)
        else:
            assert sparse and late and f"builds its mask after step {masked}" in str(error)
        return
    assert str(plan) == symbols and not (sparse and (policy.selector() is None or late))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RAS(ratio=0), "ratio is 0"),
        (lambda: RAS(metric="mean"), "metric is 'mean'.*'std' and 'norm'"),
        (lambda: RAS(starvation=-0.1), "starvation is -0.1"),
        (lambda: RAS(resets=(1.2,)), "resets is 1.2"),
        (lambda: RAS(resets=0.4), "resets is 0.4; give a list"),
        (lambda: RAS(mask_share=0.6).plan(28, BUCKETS), "mask_share is 0.6, more than the ratio 0.5"),
        (lambda: RAS(mask_share=0.6, ramp=True).plan(28, BUCKETS), "average ratio of 0.5 can't be made.*0.75"),
        (lambda: RAS(ratio=0.9, ramp=True).plan(28, BUCKETS), "0.9 can't be made of this bundle's buckets 0.25, 0.5"),
        (lambda: RAS(ratio=0.4).plan(28, BUCKETS), "needs the bucket 0.4"),
        (lambda: RAS().plan(28, ()), "no bucket below 1.0"),
        (lambda: RAS(theta=0.2), "theta is 0.2, but order 0"),
        (lambda: Drift(order=0), "order is 0, but drift is the change"),
        (lambda: Drift(theta=1.5), "theta is 1.5"),
        (lambda: Drift(budget=0.5), "budget is 0.5; give a number from 1 to 1000"),
        (lambda: Drift(cache_reach=-1), "cache_reach is -1"),
        (lambda: Drift(trend=1.1), "trend is 1.1"),
        (lambda: Drift(stale_reach=-1), "stale_reach is -1"),
        (lambda: Drift(mask_weight=float("nan")), "mask_weight is nan"),
        (lambda: Drift(mask_weight=1, mask_step=9).plan(28, BUCKETS), "mask_step is 9, but the plan DDD"),
        (lambda: Drift().plan(1, BUCKETS), "steps is 1"),
        (lambda: Fora(interval=0), "interval is 0"),
        (lambda: TaylorSeer(order=0), "order is 0; taylorseer has orders 1 and 2"),
        (lambda: TeaCache(threshold=0), "threshold is 0"),
        (lambda: TeaCache(coefficients=()), r"coefficients are \(\)"),
        (lambda: FewerSteps(budget=14).plan(28), "budget of 14 steps, but the run has 28"),
        (lambda: FewerSteps(budget=14.5), "budget is 14.5.*whole"),
        (
            lambda: DeltaDiT().plan(28, BUCKETS),
            "leaves out ranges of blocks.*build it again with --block-ranges",
        ),
        (lambda: DeltaDiT(interval=0), "interval is 0"),
        (lambda: DeltaDiT(boundary=1.5), "boundary is 1.5"),
        (lambda: named("delta-dit", plan="D2").plan(2, BUCKETS, (0.5, 0.5)), "Step 1 of the plan is '2'"),
        (lambda: named("drift", plan=12), "plan is 12; give one symbol a step"),
        (lambda: named("dense", plan="DDb").plan(3, BUCKETS), "Step 2 of the plan is 'b', but policy dense chooses no"),
        (lambda: named("drift", plan="DDb").plan(28, BUCKETS), "has 3 steps, but the run has 28"),
        (lambda: named("drift", plan="DDx").plan(3, BUCKETS), "Step 2 of the plan is 'x'"),
        (lambda: named("accelaes", plan="DDDDb").plan(5, BUCKETS), "after step 5, which must be D"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_sentence(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_fewer_steps_serves_pictures_that_start_from_another_picture():
    assert str(FewerSteps(budget=14).plan(7)) == "D" * 7
    assert FewerSteps(budget=14.0).own_steps == 14


def test_the_budgets_own_steps_grow_with_it():
    found = [Drift(budget=budget).own_steps for budget in (2, 4.5, 7, 13, 18, 60)]
    assert found == sorted(found)
    assert all(T >= budget for T, budget in zip(found, (2, 4.5, 7, 13, 18, 60), strict=True))
