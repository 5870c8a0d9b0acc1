"""Plans: the schedules docs/method.md describes, checked against a second description of the same rules."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelaes_export.errors import InputError
from accelaes_export.policies import (
    RAS,
    AccelAes,
    DeltaDiT,
    Dense,
    DiffSparse,
    Drift,
    Extrapolation,
    FewerSteps,
    Fora,
    LayerSchedule,
    Plan,
    PolicyWithPlan,
    SpatialGuidance,
    StepCache,
    StepKind,
    TaylorSeer,
    TeaCache,
    bucket_letter,
    named,
    names,
    options_of,
)

BUCKETS = (0.25, 0.5)


@pytest.mark.parametrize(
    ("policy", "symbols", "cost"),
    [
        (Dense(), "D" * 28, 28),
        (StepCache(), "DDDDD.D.D.D.D.D.D.D.D.D.D.DD", 17),
        (StepCache(interval=3), "DDDDD..D..D..D..D..D..D..D.D", 13),
        (AccelAes(), "DDDDDD.b.D.b.D.b.D.b.D.b.D.b", 14),
        (AccelAes(skip_ratio=0.75), "DDDDDD.a.D.a.D.a.D.a.D.a.D.a", 12.5),
        (AccelAes(refresh_every=0), "DDDDDD" + ".b" * 11, 11.5),
        (AccelAes(interval=1), "DDDDDD" + "bD" * 11, 22.5),
        (AccelAes(refresh_every=1), "DDDDDD" + ".D" * 11, 17),
        (AccelAes(mask_step=2, warmup=2), "DDD.b.D.b.D.b.D.b.D.b.D.b.Db", 12.5),
    ],
)
def test_the_method_pages_schedules_have_the_symbols_and_cost_it_states(policy, symbols, cost):
    plan = policy.plan(28, BUCKETS)
    assert str(plan) == symbols
    assert plan.cost == cost


def test_the_default_plan_has_six_sparse_and_eleven_dense_steps():
    plan = AccelAes().plan(28, BUCKETS)
    assert (plan.count(StepKind.SPARSE), plan.count(StepKind.DENSE), plan.count(StepKind.SKIP)) == (6, 11, 11)


def by_the_rules(T, dense_until, warmup, interval, order, refresh_every=1, sparse=""):
    """docs/method.md's rules as a walk through the run that knows only how many steps were computed, and how lately."""
    out = ""
    computed = skipped_in_a_row = computed_after_beginning = 0
    for i in range(T):
        beginning = i <= dense_until or computed < warmup
        nothing_to_extrapolate = order > 0 and computed < 2
        if beginning or nothing_to_extrapolate:
            out += "D"
        elif skipped_in_a_row < interval - 1 and i < T - 1:
            out += "."
            skipped_in_a_row += 1
            continue
        else:
            computed_after_beginning += 1
            due = refresh_every > 0 and computed_after_beginning % refresh_every == 0
            out += "D" if due else sparse
        computed += 1
        skipped_in_a_row = 0
    return out


steps = st.integers(2, 100)
schedule = {
    "warmup": st.integers(1, 12),
    "interval": st.integers(1, 6),
    "order": st.sampled_from([0, 1, 2]),
    "clock": st.sampled_from(["step", "sigma"]),
}


@given(steps, st.fixed_dictionaries(schedule))
@settings(deadline=None)
def test_stepcache_computes_the_warm_up_then_one_step_in_interval_and_the_last(T, options):
    plan = StepCache(**options).plan(T, BUCKETS)
    expected = by_the_rules(T, -1, options["warmup"], options["interval"], options["order"])
    assert str(plan) == expected
    assert plan[T - 1].computed


@given(
    steps,
    st.fixed_dictionaries(
        {
            **schedule,
            "mask_step": st.integers(0, 20),
            "refresh_every": st.integers(0, 5),
            "skip_ratio": st.sampled_from([0.5, 0.75]),
        }
    ),
)
@settings(deadline=None)
def test_accelaes_is_dense_to_the_mask_then_alternates_sparse_and_refresh_among_the_computed_steps(T, options):
    policy = AccelAes(**options)
    if options["mask_step"] >= T:
        with pytest.raises(InputError, match=rf"mask_step.*run of {T} steps"):
            policy.plan(T, BUCKETS)
        return
    plan = policy.plan(T, BUCKETS)
    sparse = {0.5: "b", 0.75: "a"}[options["skip_ratio"]]
    keys = ("warmup", "interval", "order", "refresh_every")
    assert str(plan) == by_the_rules(T, options["mask_step"], *(options[k] for k in keys), sparse)
    first_sparse = str(plan).find(sparse)
    assert first_sparse < 0 or first_sparse > options["mask_step"], "no step is sparse before the mask exists"
    assert policy.affinity_steps(plan) == ({options["mask_step"]} if first_sparse >= 0 else frozenset())


wild = st.one_of(st.integers(-3, 60), st.floats(), st.booleans(), st.none(), st.text(max_size=4))


@given(
    wild,
    st.dictionaries(
        st.sampled_from(["skip_ratio", "mask_step", "warmup", "interval", "refresh_every", "order", "clock", "reach"]),
        wild,
    ),
    st.lists(st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0, 0.0]), max_size=3),
)
@settings(deadline=None, max_examples=300)
def test_any_options_at_all_give_a_valid_plan_or_an_input_error(T, options, buckets):
    try:
        plan = AccelAes(**options).plan(T, buckets)
    except InputError as error:
        assert 20 < len(str(error)) < 400
        return
    assert len(plan) == T
    assert plan[0].kind is StepKind.DENSE


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: StepCache(interval=0), "interval is 0"),
        (lambda: StepCache(warmup=0), "warmup is 0"),
        (lambda: StepCache(order=3), "order is 3.*0.*1.*2"),
        (lambda: StepCache(order=True), "order is True"),
        (lambda: StepCache(clock="time"), "clock is 'time'.*step.*sigma"),
        (lambda: StepCache().plan(1), "steps is 1.*at least 2"),
        (lambda: AccelAes(skip_ratio=0), "skip_ratio is 0"),
        (lambda: AccelAes(skip_ratio=float("nan")), "skip_ratio is nan"),
        (lambda: AccelAes(skip_ratio=1.0), "skip_ratio is 1.0.*below 1"),
        (lambda: AccelAes(refresh_every=-1), "refresh_every is -1"),
        (lambda: AccelAes(interval=2.0), "interval is 2.0.*whole"),
        (lambda: AccelAes(reach=-1), "reach is -1"),
        (lambda: AccelAes(spatial_cfg=4.5), "spatial_cfg is 4.5"),
        (lambda: AccelAes(mask_step=28).plan(28, BUCKETS), "mask_step is 28.*at most 27"),
        (lambda: AccelAes(skip_ratio=0.6).plan(28, BUCKETS), "0.6 needs the bucket 0.4.*nearest skip ratio is 0.5"),
        (lambda: AccelAes().plan(28, ()), "no bucket below 1.0"),
        (lambda: SpatialGuidance(4.0, 5.0), "4.0 on focus and 5.0 on background"),
        (lambda: SpatialGuidance(4.0, 0.5), "focus >= background >= 1"),
        (lambda: SpatialGuidance(4.0, 1.0, softness=-1), "softness is -1"),
        (lambda: Extrapolation(reach=float("nan")), "reach is nan"),
        (lambda: Plan(""), "empty"),
        (lambda: Plan("Db", (0.5,)), "Step 1 .*'b'"),
        (lambda: Plan(".D"), "first step must be D"),
        (lambda: Plan("DD", (0.5, 0.25)), "ascending"),
        (lambda: Plan("DD", (0.5, 1.0)), "below 1"),
        (lambda: named("accelAes"), "dense, fewer-steps, stepcache"),
        (lambda: named("stepcache", skip_ratio=0.5), "no option 'skip_ratio'.*warmup, interval, order, clock"),
        (lambda: named("dense", order=1), "no option 'order'; allowed are theta"),
        (lambda: named("accelaes", spatial_cfg={"focus": 4}), "spatial_cfg lacks 'background'"),
    ],
)
def test_an_impossible_option_is_named_with_what_was_given(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_a_refresh_at_every_computed_step_needs_no_bucket():
    assert "b" not in str(AccelAes(refresh_every=1).plan(28, ()))


def test_spatial_guidance_wants_the_mask_even_where_no_step_is_sparse():
    policy = AccelAes(refresh_every=1, spatial_cfg=SpatialGuidance(7.0, 1.0))
    assert policy.affinity_steps(policy.plan(28, ())) == {5}


def test_every_policy_can_be_named_and_comes_back_from_its_options_as_data():
    guidance = SpatialGuidance(7.0, 1.0, softness=2.0)
    policies = [
        Dense(theta=0.2),
        StepCache(warmup=3, order=2),
        AccelAes(mask_step=3, spatial_cfg=guidance, reach=None, cache_reach=1.0),
        Drift(budget=12, mask_weight=0.5, spatial_cfg=guidance),
        RAS(ratio=0.25, ramp=True, metric="norm", resets=(0.5,), mask_share=0.1),
        Fora(interval=3),
        TaylorSeer(order=2),
        TeaCache(threshold=0.3, coefficients=(2.0, 0.0, 1.0)),
        DeltaDiT(interval=3, boundary=0.3),
        FewerSteps(budget=9),
        DiffSparse(LayerSchedule("norm", ("0.attn", "0.ff"), ((1, 1), (0.25, 0)))),
    ]
    policies += [named(name) for name in names() if name not in {policy.name for policy in policies}]
    assert {policy.name for policy in policies} == set(names())
    for policy in [*policies, PolicyWithPlan(Drift(theta=0.1), "DDb.")]:
        stored = json.loads(json.dumps(options_of(policy)))  # as a manifest has them
        assert named(policy.name, **stored) == policy


def test_bucket_letters_are_the_plans_own():
    plan = Plan("Dab", BUCKETS)
    assert [bucket_letter(fraction, BUCKETS) for fraction in BUCKETS] == ["a", "b"]
    assert [step.fraction for step in plan] == [1, 0.25, 0.5]
    assert bucket_letter(1 - 0.7, (0.3,)) == "a", "a rounding error in 1 - p finds its bucket"


def test_a_plan_is_made_and_printed_without_torch():
    code = (
        "import sys; import accelaes_export.policies as p; "
        "print(p.AccelAes(skip_ratio=.5).plan(28, (.5,))); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "DDDDDD.a.D.a.D.a.D.a.D.a.D.a"
