"""Drift, RAS and the compared methods in a diffusers pipeline on the shipped checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import accelaes_export as ax
from accelaes_export.bundle.reading import Bundle
from accelaes_export.policies import (
    RAS,
    Dense,
    Drift,
    FewerSteps,
    Fora,
    PolicyWithPlan,
    StepCache,
    TaylorSeer,
    TeaCache,
)
from accelaes_export.policies.drift_plans import DriftSchedule
from accelaes_export.runtime.generate import generate
from tests.shapes_pipeline import load_shapes

PROMPT = "an intricate red star on the left, plain blue background"
POLICIES = [
    Drift(),
    RAS(),
    RAS(mask_share=0.25, warmup=2),
    StepCache(theta=0.2),
    Fora(),
    TaylorSeer(order=2),
    TeaCache(),
]


@pytest.fixture(scope="module")
def pipe():
    return load_shapes()


def latents(pipe, prompt=PROMPT, steps=9, **options):
    """The last latents."""
    settings = {
        "num_inference_steps": steps,
        "guidance_scale": 4.5,
        "generator": torch.Generator().manual_seed(0),
        "max_sequence_length": 8,
        "output_type": "latent",
    }
    return pipe(prompt, **settings, **options).images


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_pictures_may_start_from_another_picture_of_any_strength(policy, pipe, shapes_bundle):
    from diffusers import StableDiffusion3Img2ImgPipeline

    from_picture = StableDiffusion3Img2ImgPipeline(**pipe.components)
    from_picture.set_progress_bar_config(disable=True)
    picture = Image.fromarray(np.full((48, 48, 3), 127, np.uint8))
    ax.accelerate(from_picture, shapes_bundle, policy=policy)
    for strength, steps in ((0.1, 2), (0.45, 9), (1.0, 20)):
        made = latents(from_picture, steps=20, image=picture, strength=strength, height=48, width=48)
        report = from_picture.transformer.report()
        assert made.isfinite().all()
        assert len(report.plan) == len(report.steps) == steps
        assert report.cost == pytest.approx(report.plan.cost, abs=1e-6)


def test_drift_that_may_compute_everything_and_feeds_nothing_ahead_is_dense(pipe, shapes_bundle):
    ax.accelerate(pipe, shapes_bundle, policy=Dense())
    expected = latents(pipe)
    ax.accelerate(pipe, shapes_bundle, policy=Drift(budget=9, theta=0.0))
    assert torch.equal(latents(pipe), expected)


def test_theta_is_left_to_solvers_that_extrapolate_by_themselves(pipe, shapes_bundle):
    from diffusers import UniPCMultistepScheduler

    euler = pipe.scheduler
    found = {}
    try:
        for order in (1, 2):
            pipe.scheduler = UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0, solver_order=order
            )
            for theta in (0.0, 0.4):
                ax.accelerate(pipe, shapes_bundle, policy=Dense(theta=theta))
                found[order, theta] = latents(pipe)
    finally:
        pipe.scheduler = euler
    assert torch.equal(found[2, 0.0], found[2, 0.4])
    assert not torch.allclose(found[1, 0.0], found[1, 0.4], atol=1e-3)


@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        (Drift(budget=12), Drift(budget=12).own_steps),
        (FewerSteps(budget=7), 7),
        (PolicyWithPlan(Drift(), "DDDb.bD."), 8),
    ],
)
def test_a_picture_is_made_in_the_steps_its_policy_was_made_for(policy, steps, pipe, shapes_bundle):
    result = generate(shapes_bundle, PROMPT, policy=policy, pipe=pipe)
    assert len(result.report.steps) == steps
    assert result.report.cost == pytest.approx(policy.plan(steps, (0.25, 0.5, 0.75)).cost)


def test_a_policy_by_name_is_the_bundles_with_its_plan_for_the_budget(pipe, shapes_bundle):
    plan = DriftSchedule(symbols="DDbb.bD.D", theta=0.0, trend=0.5, cache_reach=0.0)
    defaults = shapes_bundle.manifest.defaults.model_copy(update={"plans": {6: plan}})
    bundle = Bundle(shapes_bundle.path, shapes_bundle.manifest.model_copy(update={"defaults": defaults}))
    ax.accelerate(pipe, bundle, PolicyWithPlan(Drift(theta=0.0, trend=0.5, cache_reach=0.0), plan.symbols))
    expected = latents(pipe)
    ax.accelerate(pipe, bundle, "drift", budget=6)
    assert torch.equal(latents(pipe), expected)
    assert str(pipe.transformer.report().plan) == plan.symbols
    latents(pipe, steps=12)  # another number of steps than the plan's
    assert pipe.transformer.report().plan == Drift(budget=6).plan(12, (0.25, 0.5, 0.75))
    with pytest.raises(ax.InputError, match="budget was given beside a policy"):
        ax.accelerate(pipe, bundle, Drift(), budget=6)
    with pytest.raises(ax.InputError, match="no policy 'drifts'"):
        ax.accelerate(pipe, bundle, "drifts")


def test_a_plan_of_another_length_is_refused_before_anything_is_computed(pipe, shapes_bundle):
    ax.accelerate(pipe, shapes_bundle, policy=PolicyWithPlan(Drift(), "DDDb.bD."))
    with pytest.raises(ax.InputError, match="has 8 steps, but the run has 9"):
        latents(pipe)
