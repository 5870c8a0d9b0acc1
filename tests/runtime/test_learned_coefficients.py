"""Learned coefficients in a pipeline: what they say is what the scheduler is fed, and only where they were fitted."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

import accelaes_export as ax
from accelaes_export.errors import InputError
from accelaes_export.policies import Coefficients, Dense, Drift, PolicyWithPlan, TokenClass, from_name
from tests.shapes_pipeline import load_shapes
from tests.shapes_runs import difference, sample

THETA, T = 0.3, 7


@pytest.fixture(scope="module")
def pipe():
    pipe = load_shapes()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sigmas_of(pipe, steps: int) -> tuple[float, ...]:
    pipe.scheduler.set_timesteps(steps)
    return tuple(pipe.scheduler.sigmas.tolist())


def as_theta(pipe, ages: int = 1) -> Coefficients:
    """What a θ-step does, written as weights: E + (age + θ) / gap (E - E_before), of tokens with two predictions."""

    def one(age: int, gap: int, earlier: int) -> TokenClass:
        far = (age + THETA) / gap
        return TokenClass(age, gap, earlier, (1 + far, -far, 0), (1 + far, -far, 0))

    gaps = range(1, 4)
    every = tuple(one(age, gap, earlier) for age in range(ages) for gap in gaps for earlier in (0, *gaps))
    return Coefficients(sigmas_of(pipe, T), 4.5, (every,) * T)


def test_theta_written_as_weights_is_theta(pipe, shapes_bundle):
    ax.accelerate(pipe, shapes_bundle, Dense(theta=THETA))
    wanted = sample(pipe, steps=T)
    ax.accelerate(pipe, shapes_bundle, from_name("dense", {"plan": "D" * T, "learned": as_theta(pipe)}))
    found = sample(pipe, steps=T)
    plain = PolicyWithPlan(Dense(), "D" * T)
    ax.accelerate(pipe, shapes_bundle, plain)
    assert difference(found, wanted) < 1e-4 < difference(sample(pipe, steps=T), wanted)


def test_skipped_steps_are_weighed_by_age_and_gap(pipe, shapes_bundle):
    symbols = "DDD.D.D"
    ax.accelerate(pipe, shapes_bundle, PolicyWithPlan(Drift(theta=THETA, trend=1.0, calibrated=False), symbols))
    wanted = sample(pipe, steps=T)
    fitted = {"plan": symbols, "learned": as_theta(pipe, ages=3)}
    ax.accelerate(pipe, shapes_bundle, from_name("drift", fitted))
    assert difference(sample(pipe, steps=T), wanted) < 1e-4


def test_each_half_of_guidance_has_weights_of_its_own(pipe, shapes_bundle):
    """Weights that change the conditional half alone aren't those that change both."""
    ordinary = (1.0, 0.0, 0.0)
    halved = (0.5, 0.0, 0.0)

    def made(uncond, cond):
        classes = tuple(TokenClass(0, gap, earlier, uncond, cond) for gap in (0, 1) for earlier in (0, 1))
        fitted = Coefficients(sigmas_of(pipe, T), 4.5, (classes,) * T)
        ax.accelerate(pipe, shapes_bundle, from_name("dense", {"plan": "D" * T, "learned": fitted}))
        return sample(pipe, steps=T)[0]

    start = made((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))  # nothing moves
    both, cond, uncond = (made(*own) - start for own in ((ordinary, ordinary), (ordinary, halved), (halved, ordinary)))
    # One step of Euler is linear in the halves: -3.5 u + 4.5 c.
    assert torch.allclose(both - cond + (both - uncond), both / 2, atol=1e-5)
    assert not torch.allclose(cond, uncond, atol=1e-3)


def test_another_guidance_scale_is_noted_in_the_report(pipe, shapes_bundle):
    ax.accelerate(pipe, shapes_bundle, from_name("dense", {"plan": "D" * T, "learned": as_theta(pipe)}))
    sample(pipe, steps=T)
    assert pipe.transformer.report().notes == ()
    sample(pipe, steps=T, guidance_scale=7.0)
    (note,) = pipe.transformer.report().notes
    assert "fitted at guidance 4.5, and the run's is 7" in note


def test_other_noise_levels_and_other_solvers_are_refused_in_a_sentence(pipe, shapes_bundle):
    ax.accelerate(pipe, shapes_bundle, from_name("dense", {"plan": "D" * T, "learned": as_theta(pipe)}))
    with pytest.raises(InputError, match="fitted to 7 Euler steps of flow matching from sigma 1 to"):
        sample(pipe, steps=T, sigmas=[1 - 0.9 * (k / T) ** 2 for k in range(T)])
    with pytest.raises(InputError, match="The plan given has 7 steps, but the run has 8"):
        sample(pipe, steps=T + 1)
    ours = pipe.scheduler
    try:
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            ours.config, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        )
        with pytest.raises(InputError, match="steps by DPMSolverMultistepScheduler are others"):
            sample(pipe, steps=T)
    finally:
        pipe.scheduler = ours
    assert sample(pipe, steps=T)[-1].isfinite().all()
