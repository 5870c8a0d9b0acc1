"""Runs of the shipped checkpoint's pipeline: from prompts and from embeddings, step by step."""

from __future__ import annotations

import torch

import accelaes_export as ax
from accelaes_export.policies import AccelAes
from tests.trajectories import sampled

PROMPT = "an intricate red star on the left, plain blue background"
OTHER = "a small glossy green circle at the top, graded gray background"
STEPS = 9
OPTIONS = {"guidance_scale": 4.5, "max_sequence_length": 8}


def sample(pipe, prompt=PROMPT, steps=STEPS, seed=0, **options):
    """The latents after every step."""
    return sampled(pipe, prompt, seed=seed, num_inference_steps=steps, **OPTIONS | options)


def difference(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def report_of(pipe):
    return pipe.transformer.report()


def accelerated_sample(pipe, bundle, policy=None):
    """The latents after every step on the bundle, which stays in the pipeline."""
    ax.accelerate(pipe, bundle, policy or AccelAes())
    return sample(pipe)


def encoded(pipe, *prompts, **options):
    """What a call is given in place of its prompts."""
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    made = pipe.encode_prompt(list(prompts), None, None, max_sequence_length=8, **options)
    return dict(zip(names, made, strict=True))


def from_embeddings(pipe, given, images=1, callback=None, steps=STEPS):
    """The latents after every step of a call with embeddings."""
    found = []

    def after(own, i, t, kwargs):
        found.append(kwargs["latents"].clone())
        return callback(own, i, t, kwargs) if callback else kwargs

    pipe(
        num_inference_steps=steps,
        guidance_scale=4.5,
        generator=[torch.Generator().manual_seed(k) for k in range(images)],
        callback_on_step_end=after,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", "pooled_prompt_embeds"],
        output_type="latent",
        **given,
    )
    return found
