"""FLUX pipelines with a bundle in them: packed latents, embedded guidance, and true guidance by a second call."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import accelaes_export as ax
from accelaes_export import recipes
from accelaes_export.backbones import backbone_of
from accelaes_export.backbones.checkpoints import complete_config
from accelaes_export.policies import AccelAes, Dense, SpatialGuidance, StepCache
from accelaes_export.runtime.generate import generate, load_pipeline
from tests.policies.small_tokenizers import clip_tokenizer, t5_tokenizer
from tests.runtime.any_pipeline import AnyPipeline, Case
from tests.runtime.complete_bundle import CompleteBundle, DrawsNatively
from tests.trajectories import follows, sampled

PROMPT = "an intricate red star on the left"
OTHER = "a glossy green circle"
HEIGHT, WIDTH = 32, 24  # 8 x 6 tokens, as the tiny VAE halves both sides once
SIZE = {"height": HEIGHT, "width": WIDTH}
ACCELAES = AccelAes(mask_step=2, warmup=3)  # DDD.b.D.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole FLUX.1 [dev] pipeline in small, saved as diffusers saves it."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    clip = clip_tokenizer(("intricate", "red", "star", "glossy"), length=20)
    t5 = t5_tokenizer(("\u2581intric", "ate", "\u2581red", "\u2581star", "\u2581on", "\u2581the"))
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip), hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=20, bos_token_id=clip.bos_token_id, eos_token_id=clip.eos_token_id,
            pad_token_id=clip.pad_token_id,
        )
    )  # fmt: skip
    text_encoder_2 = T5EncoderModel(
        T5Config(vocab_size=len(t5), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.1,
    )
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=32, pooled_projection_dim=24, guidance_embeds=True, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    folder = tmp_path_factory.mktemp("flux") / "checkpoint"
    FluxPipeline(scheduler, vae, text_encoder, clip, text_encoder_2, t5, transformer).save_pretrained(folder)
    return folder


PRESETS = ("dense", "accelaes:mask_step=2:warmup=3", "drift:budget=8")


def built(checkpoint, name, **options):
    recipe = recipes.load("flux-dev").override(
        vae_scale=2, text=[{"tokenizers": ["tokenizer_2"], "length": 24}], steps=8, policy={"name": "stepcache"}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "load", lambda _: recipe)
        return ax.build(
            checkpoint, model="flux-dev", output=checkpoint.parent / name, dtype="fp32", affinity_every=1, **options
        )


@pytest.fixture(scope="module")
def bundle(checkpoint):
    return built(checkpoint, "bundle", resolution=(HEIGHT, WIDTH), components="all", presets=PRESETS)


@pytest.fixture(scope="module")
def parts(checkpoint):
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32).components


@pytest.fixture
def make(parts):
    """A pipeline of the named class from the checkpoint's parts."""

    def pipeline(name="FluxPipeline"):
        import diffusers

        kept = {part: module for part, module in parts.items() if part not in ("image_encoder", "feature_extractor")}
        pipe = getattr(diffusers, name)(**kept)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return pipeline


@pytest.fixture
def pipe(make):
    return make()


def sample(pipe, prompt=PROMPT, **options):
    """The latents after every step."""
    defaults = SIZE | {"num_inference_steps": 8, "guidance_scale": 3.5, "max_sequence_length": 24}
    return sampled(pipe, prompt, **defaults | options)


class TestAsAnyPipeline(AnyPipeline):
    case = Case(
        sample=sample,
        calls={
            "as it is": {},
            "with empty arguments": {"joint_attention_kwargs": {}},
            "another text length": {"num_inference_steps": 3, "max_sequence_length": 40},
        },
        prompts=(PROMPT, OTHER),
        words=(PROMPT, OTHER),
        plans=((StepCache(warmup=3), "DDD.D.DD"), (ACCELAES, "DDD.b.Db")),
        n=24,
    )


class TestAlone(CompleteBundle, DrawsNatively):
    asked_for = PROMPT
    encoders = ("text_encoder", "text_encoder_2")
    unguided = True  # the distilled guidance is an input


def test_the_bundle_was_verified_and_its_graph_has_no_float64(bundle):
    assert all(result.passed for result in bundle.manifest.geometry.parity)
    assert bundle.manifest.geometry.contract.rows == 1, "no call has both halves of a pair"
    graph = onnx.load(bundle.path / bundle.manifest.backend.files[0]).graph
    double = onnx.TensorProto.DOUBLE
    assert double not in {tensor.data_type for tensor in graph.initializer}
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    assert not [a for a in attributes if (a.name == "to" and a.i == double) or a.t.data_type == double]


def test_embedded_guidance_is_an_input_that_counts(pipe, bundle):
    expected = sample(pipe, guidance_scale=1.5, num_inference_steps=3)
    ax.accelerate(pipe, bundle, policy=Dense())
    assert follows(sample(pipe, guidance_scale=1.5, num_inference_steps=3), expected)
    assert not follows(sample(pipe, guidance_scale=5.0, num_inference_steps=3), expected)


@pytest.mark.thorough
def test_packed_pictures_on_their_side_run_on_the_bundle_of_their_side(pipe, bundle, checkpoint):
    lying = built(checkpoint, "lying", resolution=(WIDTH, HEIGHT), buckets="0.5", verify=False)
    made = {}
    for one, size in ((bundle, SIZE), (lying, {"height": WIDTH, "width": HEIGHT})):
        ax.accelerate(pipe, one, Dense())
        made[one.path] = sample(pipe, **size)
    ax.accelerate(pipe, [bundle, lying], Dense())  # as many tokens: the position ids tell them apart
    for one, size in ((lying, {"height": WIDTH, "width": HEIGHT}), (bundle, SIZE)):
        again = sample(pipe, **size)
        assert max((a - b).abs().max().item() for a, b in zip(again, made[one.path], strict=True)) == 0


def test_words_weigh_at_the_positions_t5_gives_them(pipe, bundle, monkeypatch):
    ax.accelerate(pipe, bundle, policy=ACCELAES)
    session, seen = pipe.transformer.served[0].session, []
    run = session.run

    def watched(given, outputs, workspace=None):
        seen.append(given["token_weights"].clone())
        return run(given, outputs, workspace)

    monkeypatch.setattr(session, "run", watched)
    sample(pipe)
    (words,) = pipe.transformer.report().words
    assert words.scorer == "clip"
    heavy = [word for word, weight in words.pairs() if weight > 0]
    assert {"intricate", "red", "star"} <= set(heavy)
    encoding = pipe.tokenizer_2(PROMPT, padding="max_length", max_length=24, return_offsets_mapping=True)
    weighed = {
        character
        for span, weight in zip(encoding["offset_mapping"], seen[0][0].tolist(), strict=True)
        for character in range(*span)
        if weight > 0
    }
    assert "".join(c if i in weighed else " " for i, c in enumerate(PROMPT)).split() == heavy


@pytest.mark.parametrize("name", ["FluxPipeline", "FluxImg2ImgPipeline"])  # only the first names its two calls
def test_true_guidance_by_a_second_call_keeps_a_cache_of_its_own(make, bundle, name):
    pipe = make(name)
    options = {"true_cfg_scale": 3.0, "negative_prompt": OTHER}
    if name == "FluxImg2ImgPipeline":
        options |= {"image": picture(), "strength": 1.0}
    expected = sample(pipe, **options)
    ax.accelerate(pipe, bundle, policy=Dense())
    assert follows(sample(pipe, **options), expected)
    ax.accelerate(pipe, bundle, policy=ACCELAES)
    assert not follows(sample(pipe, **options), expected)
    report = pipe.transformer.report()
    assert (str(report.plan), [words.prompt for words in report.words]) == ("DDD.b.Db", [PROMPT])
    # At a scale of 1 the conditional call alone counts: the other one's text and cache must not have touched it.
    alone = sample(pipe, **options | {"true_cfg_scale": 1.0})
    assert follows(sample(pipe, **options | {"true_cfg_scale": 1.0 + 1e-7}), alone)


@pytest.mark.parametrize("name", ["FluxImg2ImgPipeline", "FluxInpaintPipeline"])
def test_a_picture_to_start_from_shortens_the_plan(make, bundle, name):
    pipe = make(name)
    options = {"image": picture(), "strength": 0.6, "num_inference_steps": 10}
    if name == "FluxInpaintPipeline":
        options["mask_image"] = Image.fromarray(
            np.repeat([0, 255], WIDTH // 2).astype(np.uint8)[None].repeat(HEIGHT, 0)
        )
    expected = sample(pipe, **options)
    ax.accelerate(pipe, bundle, policy=Dense())
    assert follows(sample(pipe, **options), expected)
    assert len(pipe.transformer.report().plan) == 6


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def test_run_makes_a_picture_and_says_which_words_the_encoder_left_out(bundle):
    pipe = load_pipeline(bundle)
    result = generate(bundle, f"{PROMPT}, {OTHER}", pipe=pipe)
    assert result.image.size == (WIDTH, HEIGHT)
    assert str(result.report.plan) == bundle.manifest.defaults.plan
    assert result.cut.endswith("circle")


def test_what_the_engine_can_not_do_is_told_in_one_sentence(pipe, bundle):
    ax.accelerate(pipe, bundle, policy=Dense())
    for height, width in ((HEIGHT, 32), (WIDTH, HEIGHT)):  # the second has as many tokens
        with pytest.raises(ax.InputError, match=r"8 x 6; call the pipeline with height=32, width=24"):
            sample(pipe, height=height, width=width)
    with pytest.raises(ax.InputError, match="no input for scale"):
        sample(pipe, joint_attention_kwargs={"scale": 0.5})
    with pytest.raises(ax.InputError, match="no input for ip_adapter_image_embeds"):
        sample(pipe, joint_attention_kwargs={"ip_adapter_image_embeds": [torch.zeros(1, 1, 4)]})
    with pytest.raises(AttributeError, match="IP-adapters can't be added to an engine"):
        sample(pipe, ip_adapter_image=picture())
    ax.accelerate(pipe, bundle, policy=AccelAes(mask_step=2, spatial_cfg=SpatialGuidance(5.0, 3.0)))
    with pytest.raises(ax.InputError, match="guide with a second call"):
        sample(pipe)
    call = {"timestep": torch.ones(1), "encoder_hidden_states": torch.zeros(1, 24, 32)}
    with pytest.raises(ax.InputError, match="lacks pooled_projections, guidance"):
        pipe.transformer(torch.zeros(1, 48, 16), **call)
    with pytest.raises(ax.InputError, match="controlnet_block_samples"):
        pipe.transformer(
            torch.zeros(1, 48, 16),
            **call,
            pooled_projections=torch.zeros(1, 24),
            guidance=torch.ones(1),
            controlnet_block_samples=[torch.zeros(1, 48, 64)],
        )


def test_lora_weights_are_not_silently_left_out(pipe, bundle, monkeypatch):
    monkeypatch.setattr(pipe.transformer, "peft_config", {"default": object()}, raising=False)
    with pytest.raises(ax.InputError, match=r"unload_lora_weights\(\)"):
        ax.accelerate(pipe, bundle)


def test_what_can_not_be_built_is_told_before_anything_is_written(checkpoint, tmp_path):
    with pytest.raises(ax.InputError, match="describes a FluxTransformer2DModel, and the family sd3"):
        ax.build(checkpoint, model="sd3", output=tmp_path / "bundle", dtype="fp32")
    with pytest.raises(ax.InputError, match="bf16"):
        ax.build(checkpoint, model="flux-dev", output=tmp_path / "bundle")
    flux = backbone_of("flux")
    fill = complete_config(flux, {"in_channels": 384, "out_channels": 64})
    with pytest.raises(ax.InputError, match="takes 384 numbers a token and predicts 64"):
        flux.latents(fill, (1024, 1024), 8)
    with pytest.raises(ax.InputError, match="multiple of 16"):
        flux.latents(complete_config(flux, {}), (1000, 1024), 8)
    assert not list(tmp_path.iterdir())
