"""Every policy on every family, and TeaCache's decisions."""

from __future__ import annotations

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
from accelaes_export.policies import RAS, AccelAes, DeltaDiT, Dense, Drift, StepCache, StepKind, TeaCache
from accelaes_export.runtime.denoiser import Denoiser
from accelaes_export.runtime.step_inputs import StepInputs
from accelaes_export.runtime.trajectory import Run
from tests.eager_session import EagerSession
from tests.families import FAMILIES
from tests.watched_denoiser import BUCKETS, FRACTIONS, conditions, make

EVERY = [
    *(
        Dense(theta=0.2),
        StepCache(theta=0.2),
        Drift(),
        Drift(cache_reach=0.0, clock="sigma"),
        RAS(),
        RAS(metric="norm"),
    ),
    *(AccelAes(mask_step=1, cache_reach=1.0), Drift(mask_weight=1.0), RAS(mask_share=0.25, warmup=2), TeaCache()),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_policy_runs_on_every_family_in_both_forms_as_planned(family):
    tiny = FAMILIES[family]
    variant = next(iter(tiny.variants))
    model = tiny.model(variant)
    guidance = tiny.backbone.guidance
    for form in tiny.backbone.forms:
        step = tiny.step(model, variant, form=form)
        session = EagerSession(step)
        denoiser = Denoiser(session, step.latents, FRACTIONS, guidance)
        B = 2 if guidance.pairs else 1
        for policy in EVERY:
            for T in (2, 9):
                if policy.name == "accelaes" and T == 2:
                    continue  # ends with its mask
                plan = policy.plan(T, BUCKETS)
                masked = policy.affinity_steps(plan) and "affinity" not in session.contract.has
                weights = torch.rand(1, session.contract.text_tokens) if session.contract.text_tokens else None
                clock = range(T) if policy.extrapolation.clock == "step" else [1 - i / T for i in range(T)]
                if masked:
                    with pytest.raises(InputError, match="this model has no text"):
                        denoiser.start(Run(policy, plan, clock, weights))
                    continue
                denoiser.start(Run(policy, plan, clock, weights))
                for i in range(T):
                    inputs = example_inputs(session.contract, session.contract.tokens, B=B, seed=i)
                    conditioning = {name: inputs[name] for name in session.contract.conditioning}
                    now = StepInputs(inputs["hidden_states"], inputs["timestep"], conditioning, guidance.pairs)
                    found = denoiser.step(i, now)
                    assert found.shape[0] == B and found.isfinite().all()
                if policy.gate() is None:
                    kinds = [record.kind for record in denoiser.report().steps]
                    assert kinds == [planned.kind for planned in plan], (policy, T)
        step.restore()


@pytest.mark.parametrize("family", FAMILIES)
def test_delta_dit_runs_on_every_family_in_both_forms_and_computes_what_it_says(family):
    tiny = FAMILIES[family]
    variant = next(iter(tiny.variants))
    guidance, T = tiny.backbone.guidance, 6
    for form in tiny.backbone.forms:
        step = tiny.step(tiny.model(variant), variant, form=form, ranges=((0, 1), (1, 2)))
        contracts = [contract_without(step.contract, blocks) for blocks in step.contract.ranges]
        without = [
            EagerSession(FocusStep(tiny.model(variant), tiny.backbone, contract, step.latents, ()).eval())
            for contract in contracts
        ]
        full = EagerSession(step)
        denoiser = Denoiser(joined(full, without), step.latents, FRACTIONS, guidance)
        shares = [blocks.share for blocks in step.contract.ranges]
        policy = DeltaDiT()
        denoiser.start(Run(policy, policy.plan(T, BUCKETS, shares), range(T)))
        for i in range(T):
            inputs = example_inputs(step.contract, step.contract.tokens, B=2 if guidance.pairs else 1, seed=i)
            conditioning = {name: inputs[name] for name in step.contract.conditioning}
            now = StepInputs(inputs["hidden_states"], inputs["timestep"], conditioning, guidance.pairs)
            assert denoiser.step(i, now).isfinite().all()
        assert str(denoiser.report().plan) == "D1D0D0"
        assert denoiser.report().cost == pytest.approx(3 + shares[1] + 2 * shares[0])
        assert [len(session.calls) for session in (full, *without)] == [3, 2, 1]


@given(
    threshold=st.floats(0.05, 3),
    changes=st.lists(st.floats(0, 0.5), min_size=1, max_size=12),
    coefficients=st.sampled_from([(1.0, 0.0), (2.0, 0.5, 0.01)]),
)
@settings(max_examples=25)
def test_teacache_computes_once_the_inputs_have_changed_enough_and_reuses_until_then(threshold, changes, coefficients):
    T = len(changes) + 1
    policy = TeaCache(threshold=threshold, coefficients=coefficients)
    denoiser, session = make()
    denoiser.start(Run(policy, policy.plan(T, BUCKETS), range(T)))
    first = conditions(denoiser, 0, 2)
    latents, total, expected, kept = first.hidden_states, 0.0, [], None
    for i in range(T):
        if i:
            latents = latents * (1 + changes[i - 1])
            total += sum(c * changes[i - 1] ** (len(coefficients) - 1 - k) for k, c in enumerate(coefficients))
        if abs(total - threshold) < 1e-4:
            return  # rounding may decide
        computed = i in (0, T - 1) or total >= threshold
        total = 0.0 if computed else total
        expected.append("D" if computed else ".")
        found = denoiser.step(i, StepInputs(latents, first.timestep, first.conditioning, True))
        if not computed:
            assert torch.equal(found, kept), "the last computed prediction, as it was"
        kept = found.clone()
    report = denoiser.report()
    assert str(report.plan) == "".join(expected)
    assert len(session.calls) == expected.count("D") == report.cost
    assert [record.kind for record in report.steps] == [
        StepKind.DENSE if symbol == "D" else StepKind.SKIP for symbol in expected
    ]


def test_both_calls_of_a_teacache_step_and_all_images_share_one_decision():
    policy = TeaCache(threshold=1e9)
    split, session = make(guidance=Guidance(layout="separate"))
    split.start(Run(policy, policy.plan(4), range(4)))
    for i in range(4):
        for branch in ("cond", "uncond"):
            split.step(i, conditions(split, i, 3, paired=False), branch=branch)
    assert str(split.report().plan) == "D..D"
    assert sum(rows for _, rows in session.calls) == 2 * 2 * 3, "two steps, two calls, three images"
