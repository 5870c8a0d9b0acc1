"""Runs that leave blocks out, against the unmodified diffusers model with those blocks' outputs replaced by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelaes_export.backends.joined import joined
from accelaes_export.contract.example_inputs import example_inputs
from accelaes_export.contract.manifest import Guidance
from accelaes_export.errors import InputError
from accelaes_export.graph.focus_step import FocusStep
from accelaes_export.graph.ranges import contract_without
from accelaes_export.policies import Drift, PolicyWithPlan, StepCache, StepKind
from accelaes_export.runtime.denoiser import Denoiser
from accelaes_export.runtime.step_inputs import StepInputs
from accelaes_export.runtime.trajectory import Run
from tests.eager_session import EagerSession
from tests.families import FAMILIES
from tests.left_out_blocks import Change, blocks_of
from tests.watched_denoiser import BUCKETS, FRACTIONS

SD3, VARIANT = FAMILIES["sd3"], "qk_norm rms_norm"
TINY = dataclasses.replace(SD3, config={**SD3.config, "num_layers": 3})
RANGES = ((0, 1), (1, 3))
SHARES = (2 / 3, 1 / 3)


def make(batch=1, guidance=TINY.backbone.guidance):
    """A denoiser on a tiny SD3 model with three blocks, and the same model as diffusers has it."""
    step = TINY.step(TINY.model(VARIANT), VARIANT, ranges=RANGES, batch=batch)
    without = [
        EagerSession(
            FocusStep(
                TINY.model(VARIANT), TINY.backbone, contract_without(step.contract, blocks), step.latents, ()
            ).eval()
        )
        for blocks in step.contract.ranges
    ]
    session = joined(EagerSession(step), without)
    return Denoiser(session, step.latents, FRACTIONS, guidance), TINY.model(VARIANT)


def at(denoiser, i, rows):
    inputs = example_inputs(denoiser.session.contract, denoiser.latents.tokens, B=rows, seed=i)
    conditioning = {name: inputs[name] for name in denoiser.session.contract.conditioning}
    return inputs, StepInputs(inputs["hidden_states"], inputs["timestep"], conditioning, rows > 1)


def predicted(model, denoiser, inputs, hooked=()):
    call = {name: inputs[name] for name in ("hidden_states", "timestep", *denoiser.session.contract.conditioning)}
    handles = [block.register_forward_hook(hook, with_kwargs=True) for block, hook in hooked]
    with torch.no_grad():
        found = TINY.backbone.reference(model, call, denoiser.latents)
    for handle in handles:
        handle.remove()
    return found


@given(rest=st.lists(st.sampled_from("D01."), min_size=1, max_size=7), images=st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_a_partial_step_reuses_what_its_blocks_changed_at_the_last_dense_step(rest, images):
    symbols = "D" + "".join(rest)
    denoiser, model = make(batch=2)
    policy = PolicyWithPlan(StepCache(order=0), symbols)
    denoiser.start(Run(policy, policy.plan(len(symbols), BUCKETS, SHARES), range(len(symbols))))
    changes, expected = [], None
    for i, symbol in enumerate(symbols):
        inputs, now = at(denoiser, i, 2 * images)
        if symbol == "D":
            changes = [Change(blocks_of(model)[first:last]) for first, last in RANGES]
            expected = predicted(model, denoiser, inputs, [pair for c in changes for pair in c.hooks("watch")])
        elif symbol != ".":
            expected = predicted(model, denoiser, inputs, changes[int(symbol)].hooks("replay"))
        found = denoiser.step(i, now)
        assert torch.allclose(found, expected, atol=2e-5 * expected.abs().max())
    report = denoiser.report()
    assert report.cost == pytest.approx(sum({"D": 1, ".": 0, "0": SHARES[0], "1": SHARES[1]}[s] for s in symbols))
    assert report.cost == pytest.approx(report.plan.cost)
    assert [record.left_out for record in report.steps] == [int(s) if s in "01" else None for s in symbols]


def test_the_calls_of_a_step_that_guides_separately_have_changes_of_their_own():
    denoiser, model = make(guidance=Guidance(layout="separate"))
    policy = PolicyWithPlan(StepCache(order=0), "D1")
    denoiser.start(Run(policy, policy.plan(2, BUCKETS, SHARES), range(2)))
    changes = {}
    for i in range(2):
        for branch, seed in (("cond", 10 * i), ("uncond", 10 * i + 1)):
            inputs, now = at(denoiser, seed, 1)
            if i == 0:
                changes[branch] = Change(blocks_of(model)[1:3])
            hooks = changes[branch].hooks("replay" if i else "watch")
            expected = predicted(model, denoiser, inputs, hooks)
            found = denoiser.step(i, now, branch=branch)
            assert torch.allclose(found, expected, atol=2e-5 * expected.abs().max()), (i, branch)


def test_partial_steps_mix_with_sparse_and_skipped_ones():
    denoiser, _ = make()
    policy = PolicyWithPlan(Drift(), "DDb0.1bD")
    denoiser.start(Run(policy, policy.plan(8, BUCKETS, SHARES), range(8)))
    for i in range(8):
        assert denoiser.step(i, at(denoiser, i, 2)[1]).isfinite().all()
    kinds = {
        "D": StepKind.DENSE,
        "b": StepKind.SPARSE,
        ".": StepKind.SKIP,
        "0": StepKind.PARTIAL,
        "1": StepKind.PARTIAL,
    }
    assert [record.kind for record in denoiser.report().steps] == [kinds[symbol] for symbol in "DDb0.1bD"]


def test_a_step_after_guidance_was_switched_off_is_whole_as_its_changes_are_of_other_rows():
    denoiser, model = make()
    policy = PolicyWithPlan(StepCache(order=0), "D11")
    denoiser.start(Run(policy, policy.plan(3, BUCKETS, SHARES), range(3)))
    denoiser.step(0, at(denoiser, 0, 2)[1])
    inputs, now = at(denoiser, 1, 1)
    expected = predicted(model, denoiser, inputs)
    assert torch.allclose(denoiser.step(1, now), expected, atol=2e-5 * expected.abs().max())
    assert denoiser.report().steps[1].kind is StepKind.DENSE


def test_a_plan_for_more_ranges_than_the_bundle_has_is_refused():
    denoiser, _ = make()
    policy = PolicyWithPlan(StepCache(order=0), "D2")
    with pytest.raises(InputError, match="bundle with 3 block ranges, and this one has 2"):
        denoiser.start(Run(policy, policy.plan(2, BUCKETS, (0.5, 0.5, 0.5)), range(2)))
