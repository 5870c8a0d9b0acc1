"""A prompt that is changed in mid-run is followed, and the report says so."""

from __future__ import annotations

import logging

import pytest
import torch

import accelaes_export as ax
from accelaes_export.policies import AccelAes, Dense, Drift, StepCache
from tests.shapes_pipeline import load_shapes
from tests.shapes_runs import OPTIONS, OTHER, PROMPT, difference, encoded, from_embeddings, report_of, sample

POLICIES = [StepCache(), AccelAes(), Drift(budget=8)]


@pytest.fixture
def pipe():
    return load_shapes()


class TestAPromptChangedInMidRun:
    def swap(self, at, given, negative=False):
        def callback(pipe, i, t, kwargs):
            if i == at:
                for name in ("prompt_embeds", "pooled_prompt_embeds"):
                    kwargs[name] = torch.cat([given[f"negative_{name}"], given[name]])
            return kwargs

        return callback

    @pytest.mark.parametrize("at", [1, 6])
    def test_is_followed_from_a_dense_step_on(self, pipe, shapes_bundle, at):
        first, second = encoded(pipe, PROMPT), encoded(pipe, OTHER)
        expected = from_embeddings(pipe, first, callback=self.swap(at, second), steps=14)
        ax.accelerate(pipe, shapes_bundle, AccelAes())
        first, second = encoded(pipe, PROMPT), encoded(pipe, OTHER)
        found = from_embeddings(pipe, first, callback=self.swap(at, second), steps=14)
        report = report_of(pipe)
        assert [step.kind.name for step in report.steps[at + 1 : at + 7]] == 6 * ["DENSE"], "as at the beginning"
        assert f"the prompt was changed before step {at + 1}" in report.notes[0]
        assert report.words[0].prompt == OTHER
        rms = (found[-1] - expected[-1]).pow(2).mean().sqrt().item()
        plain = from_embeddings(pipe, second, steps=14)[-1]
        assert rms < 0.1 * plain.pow(2).mean().sqrt().item()

    def test_dense_follows_it_exactly(self, pipe, shapes_bundle):
        first, second = encoded(pipe, PROMPT), encoded(pipe, OTHER)
        expected = from_embeddings(pipe, first, callback=self.swap(3, second))
        ax.accelerate(pipe, shapes_bundle, Dense())
        assert difference(from_embeddings(pipe, first, callback=self.swap(3, second)), expected) < 1e-4

    def test_written_over_in_place_is_noticed_too(self, pipe, shapes_bundle):
        ax.accelerate(pipe, shapes_bundle, StepCache())

        def fade(own, i, t, kwargs):
            if i == 6:
                kwargs["prompt_embeds"].mul_(0.5)
            return kwargs

        from_embeddings(pipe, encoded(pipe, PROMPT), callback=fade)
        assert "changed before step 7" in report_of(pipe).notes[0]

    def test_encoding_the_next_prompt_meanwhile_disturbs_nothing(self, pipe, shapes_bundle):
        ax.accelerate(pipe, shapes_bundle, AccelAes())
        expected = sample(pipe, steps=14)

        def ahead(own, i, t, kwargs):
            own.encode_prompt(OTHER, None, None, max_sequence_length=8)
            return kwargs

        found = []
        pipe(
            PROMPT,
            num_inference_steps=14,
            generator=[torch.Generator().manual_seed(0)],
            output_type="latent",
            callback_on_step_end=lambda *given: found.append(given[3]["latents"].clone()) or ahead(*given),
            **OPTIONS,
        )
        assert difference(found, expected) < 1e-5
        assert report_of(pipe).notes == () and len(report_of(pipe).steps) == 14


class Swapped:
    """A callback that replaces the embeddings of a guided call at one step, or puts them between two prompts."""

    def __init__(self, pipe):
        self.first, self.second = encoded(pipe, PROMPT), encoded(pipe, OTHER)

    def call(self, pipe, callback):
        return from_embeddings(pipe, self.first, callback=callback, steps=14)

    def of(self, given, name):
        return torch.cat([given[f"negative_{name}"], given[name]])

    def pooled(self, pipe, i, t, kwargs):
        if i == 6:
            kwargs["pooled_prompt_embeds"] = self.of(self.second, "pooled_prompt_embeds")
        return kwargs

    def negative(self, pipe, i, t, kwargs):
        if i == 6:
            other, own = self.second["prompt_embeds"], self.first["prompt_embeds"]
            kwargs["prompt_embeds"] = torch.cat([other, own])
        return kwargs

    def shorter(self, pipe, i, t, kwargs):
        if i == 6:
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"][:, :-4]
        return kwargs

    def unguided(self, pipe, i, t, kwargs):
        if i == 6:
            pipe._guidance_scale = 0.0
            for name in ("prompt_embeds", "pooled_prompt_embeds"):
                kwargs[name] = self.first[name]
        return kwargs

    def faded(self, pipe, i, t, kwargs):
        for name in ("prompt_embeds", "pooled_prompt_embeds"):
            kwargs[name] = torch.lerp(self.of(self.first, name), self.of(self.second, name), (i + 1) / 13)
        return kwargs


@pytest.mark.parametrize("how", ["pooled", "negative", "shorter", "unguided"])
def test_whatever_part_of_the_conditioning_changes_the_picture_stays_the_dense_one(pipe, shapes_bundle, how):
    swapped = Swapped(pipe)
    expected = swapped.call(pipe, getattr(swapped, how))[-1]
    for policy in POLICIES:
        ax.accelerate(pipe, shapes_bundle, policy)
        found = swapped.call(pipe, getattr(swapped, how))[-1]
        assert (found - expected).pow(2).mean().sqrt() < 0.1 * expected.pow(2).mean().sqrt(), policy.name


def test_a_prompt_that_fades_into_another_is_dense_throughout_and_said_in_one_sentence(pipe, shapes_bundle, caplog):
    swapped = Swapped(pipe)
    expected = swapped.call(pipe, swapped.faded)
    ax.accelerate(pipe, shapes_bundle, StepCache())
    with caplog.at_level(logging.WARNING, "accelaes_export"):
        assert difference(swapped.call(pipe, swapped.faded), expected) < 1e-3
    (note,) = report_of(pipe).notes
    assert "was changed before step 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13; " in note
    assert len([record for record in caplog.records if "changed" in record.message]) == 1
