"""The denoiser carries out any plan as docs/method.md describes it, one image at a time, whatever the batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.patches import patchify
from accelaes_export.errors import InputError
from accelaes_export.graph.focus_step import example_inputs
from accelaes_export.policies import AccelAes, Dense, Plan, SpatialGuidance, StepCache
from accelaes_export.policies.base import Extrapolation
from accelaes_export.policies.selection import top_tokens
from accelaes_export.runtime.denoiser import Denoiser
from accelaes_export.runtime.step_inputs import StepInputs
from accelaes_export.runtime.trajectory import Run
from tests.eager_session import EagerSession
from tests.tiny_sd3 import SD3, tiny_config, tiny_step, tiny_transformer

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
CONFIG = tiny_config(num_layers=2)


@pytest.fixture(scope="module")
def model():
    return tiny_transformer(CONFIG)


def make(model, batch=1, form="token", guidance=SD3.guidance):
    step = tiny_step(CONFIG, [0, 1], model, batch=batch, form=form)
    session = EagerSession(step)
    return Denoiser(session, step.latents, FRACTIONS, guidance), session


def conditions(denoiser, i, rows, paired=True):
    inputs = example_inputs(denoiser.session.contract, denoiser.latents.tokens, B=rows, seed=i)
    conditioning = {name: inputs[name] for name in denoiser.session.contract.conditioning}
    return StepInputs(inputs["hidden_states"], inputs["timestep"], conditioning, paired)


def rows_of(now, rows):
    """Some rows of a step's conditions."""
    conditioning = {name: tensor[rows] for name, tensor in now.conditioning.items()}
    return StepInputs(now.hidden_states[rows], now.timestep[rows], conditioning, now.paired)


def guided_by_pipeline(rows, scale):
    uncond, cond = rows.chunk(2)
    return uncond + scale * (cond - uncond)


def carry_out(denoiser, run, images, scale, seed=0):
    """The guided prediction of every step, as a pipeline with CFG would form it."""
    denoiser.start(run)
    out = []
    for i in range(len(run.plan)):
        now = conditions(denoiser, 1000 * seed + i, 2 * images)
        out.append(guided_by_pipeline(denoiser.step(i, now), scale))
    return out


class Parts:
    """A policy put together by hand, for plans no shipped policy makes."""

    name = "parts"

    def __init__(self, policy, plan, extrapolation):
        self._policy, self._plan = policy, plan
        self.extrapolation = extrapolation
        self.spatial_guidance = policy.spatial_guidance
        self.word_scoring = policy.word_scoring

    def plan(self, steps, buckets):
        return self._plan

    def selector(self):
        return self._policy.selector()

    def gate(self):
        return None

    def affinity_steps(self, plan):
        return self._policy.affinity_steps(plan)


def test_a_dense_plan_returns_the_models_own_output(model):
    denoiser, _ = make(model)
    run = Run(Dense(), Dense().plan(3, FRACTIONS[:-1]), range(3))
    denoiser.start(run)
    for i in range(3):
        now = conditions(denoiser, i, 2)
        found = denoiser.step(i, now)
        step_model = denoiser.session._step
        step_model.restore()
        with torch.no_grad():
            expected = model(now.hidden_states, timestep=now.timestep, **now.conditioning, return_dict=False)[0]
        step_model.install()
        assert torch.equal(found, expected)


@given(
    tail=st.text(alphabet="Dabc.", min_size=1, max_size=9),
    order=st.sampled_from([0, 1, 2]),
    reach=st.sampled_from([None, 1.0, 0.5]),
    scale=st.floats(1.5, 7),
    regional=st.booleans(),
    form=st.sampled_from(["token", "component"]),
    seed=st.integers(0, 50),
)
@settings(max_examples=30)
def test_any_plan_is_carried_out_as_the_method_says(tail, order, reach, scale, regional, form, seed):
    """Against a plain description: per token a list of (step, prediction), lines and parabolas through its own."""
    guidance = SpatialGuidance(scale + 1, 1.25) if regional else None
    policy = AccelAes(skip_ratio=0.5, mask_step=1, spatial_cfg=guidance)
    plan = Plan("DD" + tail, FRACTIONS[:-1])
    parts = Parts(policy, plan, Extrapolation(order=order, reach=reach))
    weights = torch.rand(1, 9, generator=torch.Generator().manual_seed(seed))
    denoiser, session = make(tiny_transformer(CONFIG), form=form)
    found = carry_out(denoiser, Run(parts, plan, range(len(plan)), weights), 1, scale, seed)

    N, eager = 48, session._step
    memory = [[] for _ in range(N)]  # per token: (step, both halves' prediction)
    kept = affinity = region = None
    for i, symbol in enumerate(plan.symbols):
        now = conditions(denoiser, 1000 * seed + i, 2)
        g = [scale] * N
        if regional and region is not None:
            g = [1.25 + (scale + 1 - 1.25) * inside for inside in region]
        if symbol != ".":
            n = {"D": 48, "a": 12, "b": 24, "c": 36}[symbol]
            focus = list(range(N)) if n == N else sorted(sorted(range(N), key=lambda j: (-affinity[j], j))[:n])
            rest = [j for j in range(N) if j not in focus]
            inputs = {"hidden_states": now.hidden_states, "timestep": now.timestep, **now.conditioning}
            inputs["focus_index"] = torch.tensor([focus, focus])
            if form == "component":
                inputs["background_index"] = torch.tensor([rest, rest], dtype=torch.int64)
            inputs["token_weights"] = torch.cat([torch.zeros_like(weights), weights])
            inputs["observed_index"] = torch.arange(n).expand(2, -1)
            for entry in session.contract.cache:
                empty = torch.zeros(2, entry.heads, 0, entry.head_dim)
                inputs[f"{entry.name}_bg"] = kept[entry.name][:, :, rest].contiguous() if rest else empty
            with torch.no_grad():
                out = eager.run(inputs)
            if n == N:
                kept = {entry.name: out[entry.name] for entry in session.contract.cache}
            if i == 1:
                affinity = out["affinity"][1].tolist()
                top = top_tokens(out["affinity"][1:], 24)[0].tolist()
                region = [1.0 if j in top else 0.0 for j in range(N)]
            for row, j in enumerate(focus):
                memory[j].append((i, out["focus_prediction"][:, row].double()))
            if form == "component":
                for row, j in enumerate(rest):
                    memory[j].append((i, out["background_prediction"][:, row].double()))
        expected = []
        for j in range(N):
            uncond, cond = _extrapolated(memory[j], i, order, reach)
            expected.append(uncond + g[j] * (cond - uncond))
        expected = torch.stack(expected)
        got = patchify(found[i], denoiser.latents)[0].double()
        assert torch.allclose(got, expected, atol=2e-3 * max(1.0, expected.abs().max().item())), (i, symbol)


def _extrapolated(points, now, order, reach):
    """The polynomial through a token's own last points (Lagrange), its distance past the last cut at `reach` gaps."""
    points = points[-(order + 1) :]
    if len(points) == 1:
        return points[0][1]
    last, gap = points[-1][0], points[-1][0] - points[-2][0]
    at = now if reach is None else min(now, last + reach * gap)
    total = torch.zeros_like(points[0][1])
    for k, (step, prediction) in enumerate(points):
        factor = 1.0
        for other, (step_other, _) in enumerate(points):
            if other != k:
                factor *= (at - step_other) / (step - step_other)
        total = total + factor * prediction
    return total


class Rotating:
    """A selector of those tokens that waited longest, the last ones first."""

    moving, mask_step, fraction = True, None, 0.5

    def score(self, estimates, affinity, mask):
        return estimates.drops * 100 + torch.arange(48)


def test_a_selector_that_moves_has_its_fresh_keys_written_back(model):
    """Against a plain K/V store: a background token's keys are those of the step in which it last ran."""
    plan = Plan("Dbbabc", FRACTIONS[:-1])
    parts = Parts(Dense(), plan, Extrapolation(order=0))
    parts.selector, parts.affinity_steps = Rotating, lambda plan: frozenset()
    denoiser, session = make(model)
    found = carry_out(denoiser, Run(parts, plan, range(len(plan))), 1, 3.0)
    kv, latest, waited = None, None, [0] * 48
    for i, symbol in enumerate(plan.symbols):
        now = conditions(denoiser, i, 2)
        n = {"D": 48, "a": 12, "b": 24, "c": 36}[symbol]
        focus = sorted(sorted(range(48), key=lambda j: (-waited[j], -j))[:n])
        waited = [0 if j in focus else waited[j] + 1 for j in range(48)]
        rest = [j for j in range(48) if j not in focus]
        inputs = {"hidden_states": now.hidden_states, "timestep": now.timestep, **now.conditioning}
        inputs["token_weights"] = torch.zeros(2, 9)
        inputs["observed_index"] = torch.zeros(2, 0, dtype=torch.int64)
        inputs["focus_index"] = torch.tensor([focus, focus])
        for entry in session.contract.cache:
            empty = torch.zeros(2, 4, 0, 16)
            inputs[f"{entry.name}_bg"] = kv[entry.name][:, :, rest].contiguous() if rest else empty
        with torch.no_grad():
            out = session._step.run(inputs)
        if kv is None:
            kv, latest = {entry.name: out[entry.name].clone() for entry in session.contract.cache}, torch.zeros(48, 16)
        for entry in session.contract.cache:
            kv[entry.name][:, :, focus] = out[entry.name]
        latest[focus] = guided_by_pipeline(out["focus_prediction"], 3.0)[0]
        assert torch.allclose(patchify(found[i], denoiser.latents)[0], latest, atol=1e-4), i


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_images_of_a_batch_come_out_as_if_each_were_alone(model, batch):
    policy = AccelAes(mask_step=1, warmup=2)
    plan = policy.plan(8, FRACTIONS[:-1])
    weights = torch.rand(3, 9)
    denoiser, session = make(model, batch)
    together = carry_out(denoiser, Run(policy, plan, range(8), weights), 3, 4.0)
    assert max(rows for _, rows in session.calls) == 2 * min(batch, 3)
    for k in range(3):
        alone, _ = make(tiny_transformer(CONFIG))
        alone.start(Run(policy, plan, range(8), weights[k : k + 1]))
        for i in range(8):
            own = rows_of(conditions(denoiser, i, 6), torch.tensor([k, 3 + k]))
            found = guided_by_pipeline(alone.step(i, own), 4.0)
            assert torch.allclose(found[0], together[i][k], atol=2e-4)


def test_without_guidance_rows_are_images(model):
    policy = AccelAes(mask_step=1, warmup=2)
    denoiser, session = make(model)
    denoiser.start(Run(policy, policy.plan(6, FRACTIONS[:-1]), range(6), torch.rand(1, 9)))
    for i in range(6):
        now = conditions(denoiser, i, 1, paired=False)
        assert denoiser.step(i, now).shape == now.hidden_states.shape
    assert {rows for _, rows in session.calls} == {1}


def test_a_skipped_step_calls_no_engine(model):
    denoiser, session = make(model)
    policy = StepCache()
    carry_out(denoiser, Run(policy, policy.plan(12, ()), range(12)), 1, 4.0)
    assert len(session.calls) == sum(step.computed for step in policy.plan(12, ()))
    report = denoiser.report()
    assert report.cost == pytest.approx(policy.plan(12, ()).cost)
    assert [record.index for record in report.steps] == list(range(12))


def test_guidance_switched_off_in_the_middle_starts_over_with_a_dense_step(model):
    denoiser, session = make(model)
    policy = AccelAes(mask_step=1, warmup=2)
    denoiser.start(Run(policy, policy.plan(8, FRACTIONS[:-1]), range(8), torch.rand(1, 9)))
    for i in range(8):
        paired = i < 4
        denoiser.step(i, conditions(denoiser, i, 2 if paired else 1, paired))
    assert session.calls[-1][1] == 1
    first_unpaired = next(call for call in session.calls if call[1] == 1)
    assert first_unpaired == (48, 1)


def test_a_second_run_knows_nothing_of_the_first(model):
    policy = AccelAes(mask_step=1, warmup=2)
    run = Run(policy, policy.plan(7, FRACTIONS[:-1]), range(7), torch.rand(1, 9))
    fresh, _ = make(model)
    expected = carry_out(fresh, run, 1, 4.0, seed=3)
    used, _ = make(tiny_transformer(CONFIG))
    carry_out(used, run, 1, 4.0, seed=9)
    used.start(run)
    used.step(0, conditions(used, 0, 2))  # a run that was cancelled after its first step
    again = carry_out(used, run, 1, 4.0, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


def test_wrong_latents_name_both_shapes_and_the_right_size(model):
    denoiser, _ = make(model)
    denoiser.start(Run(Dense(), Dense().plan(2, ()), range(2)))
    now = conditions(denoiser, 0, 2)
    narrow = StepInputs(now.hidden_states[..., :-2], now.timestep, now.conditioning, True)
    with pytest.raises(InputError, match="height=128, width=96"):
        denoiser.step(0, narrow)
    with pytest.raises(InputError, match="outside this run's plan of 2 steps"):
        denoiser.step(2, now)
    with pytest.raises(InputError, match="pairs"):
        denoiser.step(0, rows_of(now, torch.tensor([0])))


def test_a_step_before_a_run_is_refused(model):
    denoiser, _ = make(model)
    with pytest.raises(InputError, match="No run was started"):
        denoiser.step(0, conditions(denoiser, 0, 2))


def test_a_second_call_of_a_step_has_caches_of_its_own_and_the_first_ones_focus(model):
    """Pipelines that guide with two calls a step: each branch is what it would be alone, given the same mask."""
    policy = AccelAes(mask_step=1, warmup=2)
    plan = policy.plan(8, FRACTIONS[:-1])
    weights = torch.rand(1, 9)
    paired, _ = make(model)
    split, session = make(tiny_transformer(CONFIG), guidance=Guidance(layout="separate"))
    for denoiser in (paired, split):
        denoiser.start(Run(policy, plan, range(8), weights))
    for i in range(8):
        now = conditions(paired, i, 2)
        uncond, cond = paired.step(i, now).chunk(2)
        own = [StepInputs(*part) for part in ((*_row(now, 0), False), (*_row(now, 1), False))]
        assert torch.allclose(split.step(i, own[1], branch="cond"), cond, atol=1e-4)
        assert torch.allclose(split.step(i, own[0], branch="uncond"), uncond, atol=1e-4)
    assert {rows for _, rows in session.calls} == {1}
    report = split.report()
    assert [record.index for record in report.steps] == list(range(8))
    assert report.cost == pytest.approx(plan.cost)


def _row(now, row):
    part = rows_of(now, torch.tensor([row]))
    return part.hidden_states, part.timestep, part.conditioning


def test_a_renewed_cache_makes_the_next_step_dense(model):
    policy = AccelAes(mask_step=1, warmup=2)
    denoiser, _ = make(model)
    denoiser.start(Run(policy, policy.plan(8, FRACTIONS[:-1]), range(8), torch.rand(1, 9)))
    for i in range(8):
        denoiser.step(i, dataclasses.replace(conditions(denoiser, i, 2), renewed=i == 3))
    assert [record.n for record in denoiser.report().steps][3] == 48


def test_guidance_by_region_needs_pairs(model):
    denoiser, _ = make(model, guidance=Guidance(layout="separate"))
    policy = AccelAes(mask_step=1, spatial_cfg=SpatialGuidance(5, 2))
    with pytest.raises(InputError, match="second call"):
        denoiser.start(Run(policy, policy.plan(8, FRACTIONS[:-1]), range(8)))
