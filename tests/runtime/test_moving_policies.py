"""RAS, drift, θ-steps and extrapolated caches through the denoiser, against loops over single tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.patches import by_cell, patchify
from accelaes_export.errors import InputError
from accelaes_export.policies import RAS, AccelAes, Dense, Drift, PolicyWithPlan, StepCache
from accelaes_export.policies.history_state import MEMORY
from accelaes_export.policies.moving import FLOOR
from accelaes_export.runtime.step_inputs import StepInputs
from accelaes_export.runtime.trajectory import Run
from tests.no_host_sync import NoHostSync
from tests.watched_denoiser import BUCKETS, N, Watched, conditions, make

COUNTS = {"D": 48, "a": 12, "b": 24, "c": 36}


def on_the_line(points, at, reach, trend=1.0):
    """Through the last two of (when, value), at most `reach` gaps past the last; the last where there is one."""
    (last, value), *before = points[:-3:-1]
    if not before or reach == 0:
        return value
    distance = (at - last) / (last - before[0][0])
    distance = distance if reach is None else min(distance, reach)
    return value + trend * distance * (value - before[0][1])


def expected_scores(policy, memory, ran, drops, i, affinity, latents):
    """Each token's score, of the conditional row alone, in double precision."""
    if policy.name == "drift":
        change = [((own[-1][1] - own[-2][1]).norm() / (own[-1][0] - own[-2][0])).item() for own in memory]
        floor = FLOOR * sum(change) / N
        scores = [math.log(max(c, floor)) + math.log(i - when) for c, when in zip(change, ran, strict=True)]
        if policy.mask_weight:
            least = FLOOR * sum(affinity) / N
            scores = [s + policy.mask_weight * math.log(max(m, least)) for s, m in zip(scores, affinity, strict=True)]
        return scores
    last = by_cell(torch.stack([own[-1][1] for own in memory])[None], latents)[0]  # [N, P, C]
    if policy.metric == "std":
        measure = last.var(dim=-1, correction=0).sqrt().mean(dim=-1).tolist()
    else:
        measure = last.square().sum(dim=(1, 2)).sqrt().tolist()
    floor, sign = FLOOR * sum(measure) / N, -1 if policy.metric == "std" else 1
    scores = [
        sign * math.log(max(r, floor)) + policy.starvation * dropped for r, dropped in zip(measure, drops, strict=True)
    ]
    if policy.mask_share:
        always = sorted(range(N), key=lambda token: (-affinity[token], token))[: round(policy.mask_share * N)]
        scores = [math.inf if token in always else score for token, score in enumerate(scores)]
    return scores


policies = st.one_of(
    st.builds(
        Drift,
        theta=st.sampled_from([0.0, 0.3, 1.0]),
        trend=st.sampled_from([1.0, 0.6]),
        stale_reach=st.sampled_from([None, 0.0, 0.5]),
        cache_reach=st.sampled_from([0.0, 1.0]),
        mask_weight=st.sampled_from([0.0, 0.5]),
    ),
    st.builds(
        RAS,
        metric=st.sampled_from(["std", "norm"]),
        starvation=st.sampled_from([0.0, 0.3]),
        order=st.sampled_from([0, 1]),
        cache_reach=st.sampled_from([0.0, 0.5]),
        mask_share=st.sampled_from([0.0, 0.25]),
        warmup=st.just(2),
    ),
)


@given(
    policy=policies,
    tail=st.text(alphabet="Dabc.", min_size=1, max_size=8),
    form=st.sampled_from(["token", "component"]),
    seed=st.integers(0, 50),
)
@settings(max_examples=40)
def test_moving_focus_sets_are_chosen_computed_and_cached_as_the_method_says(policy, tail, form, seed):
    policy = PolicyWithPlan(policy, "DD" + tail)
    plan = policy.plan(2 + len(tail), BUCKETS)
    weights = torch.rand(1, 9, generator=torch.Generator().manual_seed(seed))
    denoiser, session = make(form=form)
    denoiser.start(Run(policy, plan, range(len(plan)), weights))
    inner, rules, eager = policy.policy, policy.extrapolation, session._step

    memory = [[[] for _ in range(N)] for _ in range(2)]  # per row and token: (step, prediction)
    cached = {entry.name: [[[] for _ in range(N)] for _ in range(2)] for entry in session.contract.cache}
    ran, drops, affinity = [0] * N, [0] * N, None
    agreed, foreseen = [0.0, 0.0], [0.0, 0.0]  # per row, of what the lines foresaw
    for i, symbol in enumerate(plan.symbols):
        now = conditions(denoiser, 1000 * seed + i, 2)
        got = patchify(denoiser.step(i, now), denoiser.latents).double()
        if symbol != ".":
            n = COUNTS[symbol]
            focus = list(range(N))
            if n < N:
                scores = expected_scores(inner, memory[1], ran, drops, i, affinity, denoiser.latents)
                order = sorted(range(N), key=lambda token: (-scores[token], token))
                focus = sorted(order[:n])
                if scores[order[n - 1]] - scores[order[n]] < 1e-4:
                    return  # rounding may decide
            assert session.focus[-1].tolist() == [focus, focus], (i, symbol)
            rest = [token for token in range(N) if token not in focus]
            inputs = {"hidden_states": now.hidden_states, "timestep": now.timestep, **now.conditioning}
            inputs |= {"focus_index": torch.tensor([focus] * 2), "token_weights": torch.cat([0 * weights, weights])}
            inputs["observed_index"] = torch.arange(n).expand(2, -1)
            if form == "component":
                inputs["background_index"] = torch.tensor([rest, rest], dtype=torch.int64)
            for entry in session.contract.cache:
                lines = [
                    [on_the_line(row[token], i, rules.cache_reach) for token in rest] for row in cached[entry.name]
                ]
                shape = (2, entry.heads, 0, entry.head_dim)
                inputs[f"{entry.name}_bg"] = (
                    torch.stack([torch.stack(line, dim=1) for line in lines]) if rest else torch.zeros(shape)
                )
            with torch.no_grad():
                out = eager.run(inputs)
            for name, rows in cached.items():
                for row in range(2):
                    for place, token in enumerate(focus):
                        rows[row][token].append((i, out[name][row, :, place]))
            for row in range(2):
                agreed[row], foreseen[row] = MEMORY * agreed[row], MEMORY * foreseen[row]
                found = [(token, out["focus_prediction"][row, place]) for place, token in enumerate(focus)]
                if form == "component":
                    found += [(token, out["background_prediction"][row, place]) for place, token in enumerate(rest)]
                for token, prediction in found:
                    points, prediction = memory[row][token], prediction.double()
                    if len(points) > 1:
                        change = on_the_line(points, i, None) - points[-1][1]
                        agreed[row] += (change * (prediction - points[-1][1])).sum().item()
                        foreseen[row] += change.square().sum().item()
                    points.append((i, prediction))
            ran = [i if token in focus else when for token, when in enumerate(ran)]
            drops = [0 if token in focus else dropped + 1 for token, dropped in enumerate(drops)]
            if i in policy.affinity_steps(plan):
                affinity = out["affinity"][1].tolist()
        for row in range(2):
            trend = rules.trend
            if rules.calibrated:
                trend *= min(1.0, max(0.0, agreed[row] / foreseen[row])) if foreseen[row] else 0.0
            for token in range(N):
                reach = rules.reach
                if drops[token] and rules.stale_reach is not None:
                    reach = rules.stale_reach if reach is None else min(reach, rules.stale_reach)
                points = memory[row][token] if rules.order else memory[row][token][-1:]
                expected = on_the_line(points, i + rules.theta, reach, trend)
                assert torch.allclose(got[row, token], expected, atol=2e-3 * max(1.0, expected.abs().max())), (i, token)


@pytest.mark.parametrize("theta", [0.0, 0.25, 1.0])
def test_a_theta_step_feeds_the_scheduler_what_lies_that_far_past_the_step(theta):
    denoiser, _ = make()
    denoiser.start(Run(Dense(theta=theta), Dense().plan(4), range(4)))
    plain, _ = make()
    plain.start(Run(Dense(), Dense().plan(4), range(4)))
    before = None
    for i in range(4):
        now = conditions(denoiser, i, 2)
        found, computed = denoiser.step(i, now), plain.step(i, now)
        expected = computed if before is None else computed + theta * (computed - before)
        assert torch.allclose(found, expected, atol=1e-5)
        before = computed


def test_theta_is_counted_in_steps_whatever_the_clock_counts_in():
    sigmas = [1.0, 0.7, 0.2, 0.1]
    policy = StepCache(clock="sigma", theta=0.5, warmup=3, interval=2)
    run = Run(policy, policy.plan(4), sigmas)
    assert [run.target(i) for i in range(4)] == pytest.approx([0.85, 0.45, 0.15, 0.05])
    assert [Run(policy, policy.plan(4), sigmas, first_order=False).target(i) for i in range(4)] == sigmas


def test_a_solver_of_higher_order_gets_the_prediction_of_the_step_itself():
    found = []
    for options in ({"first_order": False}, {}):
        denoiser, _ = make()
        policy = Drift(theta=0.5, calibrated=False)
        denoiser.start(Run(policy, policy.plan(6, BUCKETS), range(6), **options))
        found.append([denoiser.step(i, conditions(denoiser, i, 2)) for i in range(6)])
    plain, _ = make()
    policy = Drift(theta=0.0, calibrated=False)
    plain.start(Run(policy, policy.plan(6, BUCKETS), range(6)))
    expected = [plain.step(i, conditions(plain, i, 2)) for i in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected, strict=True))
    assert not torch.allclose(found[1][1], expected[1], atol=1e-3)


MOVING = [
    Drift(mask_weight=0.5),
    RAS(mask_share=0.25, warmup=2, ramp=True),
    RAS(interval=2, order=1),
    AccelAes(mask_step=1),
]


@pytest.mark.parametrize("policy", MOVING, ids=lambda policy: policy.name)
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_every_image_of_a_batch_has_its_own_focus_set_and_comes_out_as_if_alone(policy, batch):
    plan, weights = policy.plan(9, BUCKETS), torch.rand(3, 9)
    together, _ = make(batch)
    together.start(Run(policy, plan, range(9), weights))
    rows = [together.step(i, conditions(together, i, 6)).unflatten(0, (2, 3)) for i in range(9)]
    focus = together.report().focus_index
    assert focus.shape[0] == 3 and not torch.equal(focus[0], focus[1])
    for k in range(3):
        alone, _ = make()
        alone.start(Run(policy, plan, range(9), weights[k : k + 1]))
        for i in range(9):
            now = conditions(alone, i, 6)
            own = torch.tensor([k, 3 + k])
            part = StepInputs(
                now.hidden_states[own], now.timestep[own], {name: t[own] for name, t in now.conditioning.items()}, True
            )
            assert torch.allclose(alone.step(i, part), rows[i][:, k], atol=5e-4), (k, i)
        assert torch.equal(alone.report().focus_index[0], focus[k])


def test_the_unconditional_call_of_a_step_computes_the_conditional_ones_tokens():
    policy = Drift()
    plan = policy.plan(9, BUCKETS)
    split, session = make(guidance=Guidance(layout="separate"))
    split.start(Run(policy, plan, range(9)))
    for i in range(9):
        now = conditions(split, i, 2)
        for branch, row in (("cond", 1), ("uncond", 0)):
            own = torch.tensor([row])
            conditioning = {name: tensor[own] for name, tensor in now.conditioning.items()}
            split.step(i, StepInputs(now.hidden_states[own], now.timestep[own], conditioning, False), branch=branch)
    calls = iter(session.focus)
    assert all(torch.equal(focus, next(calls)) for focus in calls)


def test_nothing_in_a_run_of_drift_or_ras_waits_for_the_device():
    class Silent(Watched):
        """Its engine is another device: what it does isn't watched."""

        def run(self, inputs, outputs, workspace=None):
            for tensor in outputs.values():
                tensor.normal_()

    for policy in MOVING:
        denoiser, session = make()
        denoiser.session = Silent(session._step)
        plan = policy.plan(9, BUCKETS)
        denoiser.start(Run(policy, plan, range(9), torch.rand(1, 9)))
        inputs = [conditions(denoiser, i, 2) for i in range(9)]
        with NoHostSync():
            for i in range(9):
                denoiser.step(i, inputs[i])


def test_a_plan_that_cannot_be_carried_out_is_refused_before_the_first_step():
    denoiser, _ = make()
    plan = RAS(warmup=1).plan(6, BUCKETS)
    with pytest.raises(InputError, match="Step 1 of the plan is 'b', but policy dense chooses no focus tokens"):
        denoiser.start(Run(Dense(), plan, range(6)))
