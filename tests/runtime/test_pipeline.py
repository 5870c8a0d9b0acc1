"""A diffusers pipeline with a bundle in it is used as before and makes the same pictures."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from PIL import Image

import accelaes_export as ax
from accelaes_export.policies import AccelAes, Dense, SpatialGuidance, StepCache, StepKind
from accelaes_export.runtime.stand_in import AcceleratedTransformer
from tests.shapes_pipeline import load_shapes
from tests.tiny_sd3 import save_tiny_checkpoint, tiny_config
from tests.trajectories import sampled

PROMPT = "an intricate red star on the left, plain blue background"
OTHER = "a small glossy green circle at the top, graded gray background"


@pytest.fixture
def pipe():
    return load_shapes()


def sample(pipe, prompt=PROMPT, steps=28, seed=0, **options):
    """The latents after every step."""
    defaults = {"guidance_scale": 4.5, "max_sequence_length": 8}
    return sampled(pipe, prompt, seed=seed, num_inference_steps=steps, **defaults | options)


def largest_difference(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def test_the_dense_policy_follows_the_untouched_pipeline_through_all_28_steps(pipe, shapes_bundle):
    expected = sample(pipe)
    ax.accelerate(pipe, shapes_bundle, policy=Dense())
    assert largest_difference(sample(pipe), expected) <= 1e-4


def test_dense_follows_it_at_the_pipelines_own_text_length_of_256_too(pipe, shapes_bundle):
    expected = sample(pipe, max_sequence_length=256)
    ax.accelerate(pipe, shapes_bundle, policy=Dense())
    assert largest_difference(sample(pipe, max_sequence_length=256), expected) <= 1e-4


def test_restore_puts_the_pipelines_own_transformer_back(pipe, shapes_bundle):
    own = pipe.transformer
    expected = sample(pipe, steps=3)
    ax.accelerate(pipe, shapes_bundle)
    assert isinstance(pipe.transformer, AcceleratedTransformer)
    ax.accelerate(pipe, shapes_bundle, policy=StepCache())  # twice is as good as once
    ax.restore(pipe)
    assert pipe.transformer is own
    assert "encode_prompt" not in vars(pipe)
    assert largest_difference(sample(pipe, steps=3), expected) == 0
    assert ax.restore(pipe) is pipe


def test_accelaes_computes_half_the_token_steps_and_says_which_words_drove_it(pipe, shapes_bundle):
    ax.accelerate(pipe, shapes_bundle, policy=AccelAes())
    sample(pipe)
    report = pipe.transformer.report()
    assert str(report.plan) == "DDDDDD" + ".b.D" * 5 + ".b"
    assert report.cost == 14
    kinds = [record.kind for record in report.steps]
    assert kinds == [step.kind for step in report.plan]
    assert kinds.count(StepKind.SPARSE) == 6
    (words,) = report.words
    assert [word for word, weight in words.pairs() if weight > 0] == ["intricate", "red", "star"]
    assert report.focus_index.shape == (1, 72)
    chosen = report.affinity[0].sort(descending=True).indices[:72].sort().values
    assert torch.equal(report.focus_index[0], chosen)


def test_a_batch_of_prompts_gives_each_image_its_own_focus_and_the_picture_it_has_alone(pipe, shapes_bundle):
    ax.accelerate(pipe, shapes_bundle, policy=AccelAes())
    together = sample(pipe, [PROMPT, OTHER], steps=12)[-1]
    report = pipe.transformer.report()
    assert report.focus_index.shape[0] == 2
    assert not torch.equal(report.focus_index[0], report.focus_index[1])
    assert [words.prompt for words in report.words] == [PROMPT, OTHER]
    for k, prompt in enumerate([PROMPT, OTHER]):
        alone = sample(pipe, prompt, steps=12, seed=k)[-1]
        assert torch.allclose(alone[0], together[k], atol=1e-4)


def test_several_images_of_one_prompt_share_its_words(pipe, shapes_bundle):
    ax.accelerate(pipe, shapes_bundle, policy=AccelAes())
    sample(pipe, PROMPT, steps=8, num_images_per_prompt=2, generator=torch.Generator().manual_seed(0))
    assert [words.prompt for words in pipe.transformer.report().words] == [PROMPT, PROMPT]


def test_a_cancelled_run_leaves_no_trace_in_the_next(pipe, shapes_bundle):
    ax.accelerate(pipe, shapes_bundle, policy=AccelAes())
    expected = sample(pipe, steps=12)

    def cancel(pipeline, i, t, kwargs):
        pipeline._interrupt = i == 7
        return kwargs

    pipe(OTHER, num_inference_steps=12, max_sequence_length=8, output_type="latent", callback_on_step_end=cancel)

    def fail(pipeline, i, t, kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(OTHER, num_inference_steps=12, max_sequence_length=8, callback_on_step_end=fail)
    assert largest_difference(sample(pipe, steps=12), expected) == 0


def test_one_bundle_serves_pipelines_in_threads_at_once(shapes_bundle):
    prompts = [PROMPT, OTHER, "a vibrant yellow square on the right, plain white background"]
    pipes = [ax.accelerate(load_shapes(), shapes_bundle, policy=AccelAes()) for _ in prompts]
    expected = [sample(pipe, prompt, steps=10)[-1] for pipe, prompt in zip(pipes, prompts, strict=True)]
    found = [None] * len(prompts)

    def work(k):
        found[k] = sample(pipes[k], prompts[k], steps=10)[-1]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(expected, found, strict=True))


def test_spatial_guidance_reaches_the_latents_through_the_pipelines_own_formula(pipe, shapes_bundle):
    plain, equal, regional = (
        AccelAes(refresh_every=1, interval=1, spatial_cfg=cfg)
        for cfg in (None, SpatialGuidance(4.5, 4.5), SpatialGuidance(6.0, 3.0))
    )
    latents = {}
    for name, policy in {"plain": plain, "equal": equal, "regional": regional}.items():
        ax.accelerate(pipe, shapes_bundle, policy=policy)
        latents[name] = sample(pipe, steps=9)
    assert largest_difference(latents["plain"], latents["equal"]) <= 1e-4
    before, after = latents["plain"][:6], latents["regional"][:6]
    assert largest_difference(before, after) == 0, (
        "the mask is built after step 5; until then guidance is the pipeline's"
    )
    assert largest_difference(latents["plain"], latents["regional"]) > 1e-2


def test_img2img_starts_in_the_middle_and_plans_for_the_steps_it_has(shapes_bundle):
    from diffusers import StableDiffusion3Img2ImgPipeline

    pipe = StableDiffusion3Img2ImgPipeline(**load_shapes().components)
    pipe.set_progress_bar_config(disable=True)
    picture = Image.fromarray(np.full((48, 48, 3), 127, np.uint8))
    options = {"image": picture, "strength": 0.6, "height": 48, "width": 48}
    expected = sample(pipe, steps=20, **options)
    ax.accelerate(pipe, shapes_bundle, policy=Dense())
    assert largest_difference(sample(pipe, steps=20, **options), expected) <= 1e-4
    ax.accelerate(pipe, shapes_bundle, policy=AccelAes())
    sample(pipe, steps=20, **options)
    assert len(pipe.transformer.report().plan) == 12


def test_inpaint_follows_the_untouched_pipeline(tmp_path):
    """diffusers' inpaint pipeline wants 16 latent channels, so this one has a transformer and VAE of its own."""
    from diffusers import AutoencoderKL, StableDiffusion3InpaintPipeline

    parts = load_shapes().components
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=1.0,
        shift_factor=0.0,
    )
    widths = {name: parts["transformer"].config[name] for name in ("joint_attention_dim", "pooled_projection_dim")}
    config = tiny_config(in_channels=16, out_channels=16, sample_size=24, num_layers=2, **widths)
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint", config)
    bundle = ax.build(checkpoint, model="shapes", output=tmp_path / "bundle", buckets="0.5", presets="none")
    transformer = type(parts["transformer"]).from_pretrained(checkpoint / "transformer")
    pipe = StableDiffusion3InpaintPipeline(**parts | {"vae": vae.eval(), "transformer": transformer})
    pipe.set_progress_bar_config(disable=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8))
    half = Image.fromarray(np.repeat([0, 255], 24).astype(np.uint8)[None].repeat(48, 0))
    options = {"image": picture, "mask_image": half, "height": 48, "width": 48, "strength": 0.7, "steps": 10}
    expected = sample(pipe, **options)
    ax.accelerate(pipe, bundle, policy=Dense())
    scale = expected[-1].abs().max().item()
    assert largest_difference(sample(pipe, **options), expected) <= 1e-4 * scale
    assert len(pipe.transformer.report().plan) == 7


def test_embeddings_made_by_the_pipeline_bring_their_words_along(pipe, shapes_bundle):
    ax.accelerate(pipe, shapes_bundle, policy=AccelAes())
    expected = sample(pipe, steps=9)
    embeds, negative, pooled, negative_pooled = pipe.encode_prompt(PROMPT, None, None, max_sequence_length=8)
    given = {
        "prompt_embeds": embeds,
        "negative_prompt_embeds": negative,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": negative_pooled,
    }
    found = []
    pipe(
        num_inference_steps=9,
        guidance_scale=4.5,
        generator=[torch.Generator().manual_seed(0)],
        callback_on_step_end=lambda p, i, t, kwargs: found.append(kwargs["latents"].clone()) or kwargs,
        output_type="latent",
        **given,
    )
    assert pipe.transformer.report().words[0].prompt == PROMPT
    assert largest_difference(found, expected) <= 1e-5
    strangers = {name: 1.01 * tensor for name, tensor in given.items()}
    pipe(num_inference_steps=9, guidance_scale=4.5, output_type="latent", **strangers)
    report = pipe.transformer.report()
    assert report.words == () and report.affinity is None, "of embeddings from elsewhere nobody knows the words"
    assert report.notes == (
        "the prompts behind these embeddings aren't known, so policy accelaes runs without a mask; "
        "say them with ax.words(pipe, prompts)",
    )


def test_guidance_switched_off_by_a_callback_goes_on_without_pairs(pipe, shapes_bundle):
    def cutoff(pipeline, i, t, kwargs):
        if i == 6:
            pipeline._guidance_scale = 0.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"][-1:]
            kwargs["pooled_prompt_embeds"] = kwargs["pooled_prompt_embeds"][-1:]
        return kwargs

    def run():
        return pipe(
            PROMPT,
            num_inference_steps=10,
            max_sequence_length=8,
            guidance_scale=4.5,
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=cutoff,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", "pooled_prompt_embeds"],
            output_type="latent",
        ).images

    expected = run()
    ax.accelerate(pipe, shapes_bundle, policy=Dense())
    assert torch.allclose(run(), expected, atol=1e-4)


def test_wrong_uses_are_told_in_one_sentence(pipe, shapes_bundle):
    with pytest.raises(ax.InputError, match="StableDiffusion3Pipeline"):
        ax.accelerate(object(), shapes_bundle)
    ax.accelerate(pipe, shapes_bundle)
    with pytest.raises(ax.InputError, match="height=48, width=48"):
        sample(pipe, steps=8, height=64, width=48)
    with pytest.raises(ax.InputError, match="skip_guidance_layers"):
        sample(pipe, steps=10, skip_guidance_layers=[1])


def test_a_pipeline_of_another_architecture_is_refused(pipe, shapes_bundle):
    config = dict(pipe.transformer.config) | {"num_layers": 2}
    pipe.transformer = type(pipe.transformer).from_config(config)
    with pytest.raises(ax.InputError, match="num_layers"):
        ax.accelerate(pipe, shapes_bundle)
