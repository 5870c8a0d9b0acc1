"""What can't be accelerated as asked for is refused, or is dense or without a mask and says so: no picture is wrong."""

from __future__ import annotations

import logging

import diffusers
import pytest
import torch

import accelaes_export as ax
from accelaes_export.policies import AccelAes, Dense, Drift, StepCache
from accelaes_export.policies.words import split_words
from accelaes_export.runtime.samplers import adds_noise
from tests.shapes_pipeline import load_shapes
from tests.shapes_runs import (
    OTHER,
    PROMPT,
    difference,
    encoded,
    from_embeddings,
    report_of,
    sample,
)


@pytest.fixture
def pipe():
    return load_shapes()


class TestSchedulersThatAddNoise:
    NOISY = (
        diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        diffusers.FlowMatchLCMScheduler(),
        diffusers.EulerAncestralDiscreteScheduler(),
        diffusers.DDPMScheduler(),
        diffusers.DDPMScheduler(variance_type="learned_range"),
        diffusers.SASolverScheduler(),
        diffusers.LCMScheduler(),
        diffusers.TCDScheduler(),
        diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    )
    STILL = (
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        diffusers.FlowMatchHeunDiscreteScheduler(),
        diffusers.DDIMScheduler(),
        diffusers.DPMSolverMultistepScheduler(),
        diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        diffusers.EulerDiscreteScheduler(),
        diffusers.HeunDiscreteScheduler(),
        diffusers.PNDMScheduler(),
    )

    @pytest.mark.parametrize("scheduler", NOISY, ids=lambda s: type(s).__name__)
    def test_are_known_by_what_they_do(self, scheduler):
        before = torch.get_rng_state()
        assert adds_noise(scheduler)
        assert torch.equal(torch.get_rng_state(), before), "the user's random numbers are his own"

    @pytest.mark.parametrize("scheduler", STILL, ids=lambda s: type(s).__name__)
    def test_are_no_deterministic_ones(self, scheduler):
        assert not adds_noise(scheduler)

    def test_ddim_adds_noise_by_the_eta_of_the_call(self):
        assert adds_noise(diffusers.DDIMScheduler(), {"eta": 0.5})

    @pytest.mark.parametrize("policy", [AccelAes(), StepCache(), Drift(budget=6), Dense(theta=0.5)])
    def test_run_dense_and_say_so_once(self, pipe, shapes_bundle, policy, caplog):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=True)
        torch.manual_seed(3)
        expected = sample(pipe)
        ax.accelerate(pipe, shapes_bundle, policy)
        with caplog.at_level(logging.WARNING, "accelaes_export"):
            torch.manual_seed(3)
            found = sample(pipe)
        assert difference(found, expected) < 1e-4
        report = report_of(pipe)
        assert report.policy == "dense" and "adds noise" in report.notes[0]
        assert [record.message for record in caplog.records if "adds noise" in record.message] == [
            report.notes[0] + "."
        ]

    def test_are_an_error_where_the_caller_is_strict(self, pipe, shapes_bundle):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=True)
        ax.accelerate(pipe, shapes_bundle, StepCache(), strict=True)
        with pytest.raises(ax.InputError, match="adds noise.*take a deterministic scheduler, or the policy dense"):
            sample(pipe)

    def test_serve_a_policy_that_carries_nothing_on(self, pipe, shapes_bundle):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=True)
        ax.accelerate(pipe, shapes_bundle, Dense(), strict=True)
        sample(pipe)
        assert report_of(pipe).notes == ()


class TestPromptsWithoutAWeighedWord:
    @pytest.mark.parametrize("prompt", ["", " "])
    def test_an_empty_one_has_no_mask(self, pipe, shapes_bundle, prompt):
        ax.accelerate(pipe, shapes_bundle, AccelAes())
        found = sample(pipe, prompt)
        report = report_of(pipe)
        assert report.affinity is None and report.focus_index is None and "without a mask" in report.notes[0]
        ax.accelerate(pipe, shapes_bundle, StepCache(warmup=6))
        assert difference(found, sample(pipe, prompt)) < 1e-5, "what is left is skipping in time"

    @pytest.mark.parametrize("prompt", ["...", "\N{WHITE MEDIUM STAR}\N{WHITE MEDIUM STAR}", "!?", "(:)"])
    def test_signs_and_emoji_weigh_the_same_each(self, pipe, shapes_bundle, prompt):
        ax.accelerate(pipe, shapes_bundle, AccelAes())
        sample(pipe, prompt)
        report = report_of(pipe)
        if report.affinity is not None:
            assert report.affinity.std() > 0, "ties would put the focus into the upper half"
        else:
            assert "without a mask" in report.notes[0]

    def test_words_behind_the_truncation_weigh_nothing_and_take_nothing_away(self, pipe, shapes_bundle):
        filler = "a red star on the left and " * 20
        ax.accelerate(pipe, shapes_bundle, AccelAes())
        sample(pipe, filler + "an intricate circle")
        words = report_of(pipe).words[0]
        assert "intricate" not in words.words and words.fallback, "what is read has no word of looks"
        assert report_of(pipe).affinity.std() > 0

    def test_strict_callers_are_told(self, pipe, shapes_bundle):
        ax.accelerate(pipe, shapes_bundle, AccelAes(), strict=True)
        with pytest.raises(ax.InputError, match="needs a mask from the prompt"):
            sample(pipe, "")

    def test_drift_goes_on_choosing_by_drift(self, pipe, shapes_bundle):
        ax.accelerate(pipe, shapes_bundle, Drift(budget=6, mask_weight=1.0, mask_step=2))
        found = sample(pipe, "", steps=12)
        assert "without a mask" in report_of(pipe).notes[0]
        ax.accelerate(pipe, shapes_bundle, Drift(budget=6))
        assert difference(found, sample(pipe, "", steps=12)) < 1e-5


class TestEmbeddings:
    def test_bring_their_words_along_whatever_was_done_to_them(self, pipe, shapes_bundle, tmp_path):
        ax.accelerate(pipe, shapes_bundle, AccelAes())
        expected = sample(pipe, [PROMPT, OTHER])
        focus = report_of(pipe).focus_index
        ahead = [encoded(pipe, prompt) for prompt in (PROMPT, OTHER, *(f"{k} green stars" for k in range(8)))]
        joined = {name: torch.cat([ahead[0][name], ahead[1][name]]) for name in ahead[0]}
        torch.save(joined, tmp_path / "embeds.pt")
        for given in (joined, torch.load(tmp_path / "embeds.pt"), {n: t.clone() for n, t in joined.items()}):
            found = from_embeddings(pipe, given, images=2)
            assert difference(found, expected) < 1e-4
            assert torch.equal(report_of(pipe).focus_index, focus)
        from_embeddings(pipe, ahead[0])
        assert report_of(pipe).words[0].prompt == PROMPT, "the first of ten encoded ahead"

    def test_from_elsewhere_have_the_words_the_caller_says(self, pipe, shapes_bundle):
        given = encoded(pipe, PROMPT)  # before accelerate
        ax.accelerate(pipe, shapes_bundle, AccelAes())
        from_embeddings(pipe, given)
        assert report_of(pipe).words == () and "aren't known" in report_of(pipe).notes[0]
        ax.words(pipe, PROMPT)
        found = from_embeddings(pipe, given)
        ax.words(pipe, [PROMPT, OTHER])
        with pytest.raises(ax.InputError, match="2 prompts were said .* but the call makes 1 pictures"):
            from_embeddings(pipe, given)
        ax.words(pipe, None)
        from_embeddings(pipe, given)
        assert report_of(pipe).words == ()
        ax.accelerate(pipe, shapes_bundle, AccelAes(), words=PROMPT)
        assert difference(from_embeddings(pipe, given), found) < 1e-5
        assert difference(sample(pipe), found) < 1e-5

    def test_words_are_texts_and_for_accelerated_pipelines(self, pipe, shapes_bundle):
        with pytest.raises(ax.InputError, match="isn't accelerated"):
            ax.words(pipe, PROMPT)
        ax.accelerate(pipe, shapes_bundle)
        for wrong in ([], [3], [None]):
            with pytest.raises(ax.InputError, match="give the prompt of every image"):
                ax.words(pipe, wrong)

    def test_are_pairs_without_any_known_words(self, pipe, shapes_bundle):
        given = encoded(pipe, PROMPT)
        expected = from_embeddings(pipe, given)
        ax.accelerate(pipe, shapes_bundle, Dense())
        assert difference(from_embeddings(pipe, given), expected) < 1e-4


def test_gradients_are_refused(pipe, shapes_bundle):
    ax.accelerate(pipe, shapes_bundle, Dense())
    pipe.scheduler.set_timesteps(4)
    given = encoded(pipe, PROMPT)
    latents = torch.randn(2, 4, 24, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with pytest.raises(ax.InputError, match="require gradients, and an engine has none"):
        pipe.transformer(
            latents,
            timestep=torch.full((2,), 500.0),
            encoder_hidden_states=torch.cat([given["negative_prompt_embeds"], given["prompt_embeds"]]),
            pooled_projections=torch.cat([given["negative_pooled_prompt_embeds"], given["pooled_prompt_embeds"]]),
        )


@pytest.mark.parametrize(
    "prompt",
    [
        "an (intricate:1.3) red star on the left",
        "an ((intricate)) red star on the left",
        "an (intricate)1.2 red star on the left",
        "an intricate++ red star on the left",
        "an (intricate red:1.1) star on the left",
        "an ((intricate:1.2) red:0.9) star on the left",
        "<lora:details:0.8> an [intricate] red star on the left".replace("[", "(").replace("]", ":.5)"),
    ],
)
def test_prompt_weights_in_other_programs_notation_end_no_phrase_and_are_no_words(prompt):
    words = split_words(prompt)
    assert [word.text for word in words] == ["an", "intricate", "red", "star", "on", "the", "left"]
    assert all(prompt[word.start : word.end] == word.text for word in words)
    phrases = {word.text: word.phrase for word in words}
    assert phrases["intricate"] == phrases["red"] == phrases["star"] != phrases["left"]


class TestPredictionsThatAreNoNumbers:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("policy", [Dense(), AccelAes(), Drift(budget=6)])
    def test_are_counted_and_said(self, pipe, shapes_bundle, policy, value, caplog):
        def break_it(own, i, t, kwargs):
            if i == 6:
                kwargs["latents"][0, 0, 3, 4] = value
            return kwargs

        ax.accelerate(pipe, shapes_bundle, policy)
        with caplog.at_level(logging.WARNING, "accelaes_export"):
            from_embeddings(pipe, encoded(pipe, PROMPT), callback=break_it, steps=12)
        report = report_of(pipe)
        computed = [step.index for step in report.steps if step.index > 6 and step.n]
        assert computed[0] in report.nonfinite and min(report.nonfinite) >= 7
        said = [record.message for record in caplog.records if "infinite or not a number" in record.message]
        assert len(said) == 1 and f"At step {min(report.nonfinite)} the engine predicted" in said[0]

    def test_are_none_of_a_sound_run(self, pipe, shapes_bundle):
        ax.accelerate(pipe, shapes_bundle, AccelAes())
        sample(pipe)
        assert report_of(pipe).nonfinite == {}
