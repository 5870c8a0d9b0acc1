"""A small Wan pipeline with a bundle in it: videos, and a second call a step for the negative prompt."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import accelaes_export as ax
from accelaes_export.backbones import backbone_of
from accelaes_export.policies import AccelAes, Dense, SpatialGuidance, StepCache, StepKind
from accelaes_export.runtime.generate import generate, load_pipeline
from accelaes_export.runtime.images import mask_overlays
from tests.families.wan import FAMILY
from tests.policies.small_tokenizers import t5_tokenizer
from tests.runtime.complete_bundle import CompleteBundle
from tests.trajectories import difference, sampled

PROMPT = "an intricate red star, plain blue background"
OTHER = "a small glossy green circle, graded gray background"
SIZE = {"height": 48, "width": 64, "num_frames": 9}  # 3 latent frames of 3 x 4 patches: N = 36
STEPS = 9


def save_tiny_wan(folder, seed=0, **changes):
    """A Wan pipeline with random weights, its classes and schedulers as published; returns the folder."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = t5_tokenizer(("\u2581intricate", "\u2581red", "\u2581star", "\u2581glossy", "\u2581background"))
    torch.manual_seed(seed)
    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(
            UMT5Config(vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=3)
        ).eval(),
        vae=AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=WanTransformer3DModel(**FAMILY.config | {"in_channels": 16, "out_channels": 16} | changes).eval(),
    )
    pipe.save_pretrained(folder)
    return folder


def build_tiny_wan(checkpoint, output, **options):
    tiny = {"resolution": (48, 64), "frames": 3, "dtype": "fp32", "buckets": "0.5", "affinity_every": 1}
    return ax.build(checkpoint, model="wan2.1-1.3b", output=output, **tiny | options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_wan(tmp_path_factory.mktemp("wan") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("wan-bundle") / "bundle"
    return build_tiny_wan(checkpoint, output, components="all")


def load(checkpoint):
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(checkpoint):
    return load(checkpoint)


def sample(pipe, prompt=PROMPT, steps=STEPS, seed=0, **options):
    """The latents after every step."""
    defaults = SIZE | {"guidance_scale": 5.0, "max_sequence_length": 24}
    return sampled(pipe, prompt, seed=seed, num_inference_steps=steps, **defaults | options)


class Calls:
    """What a session was given, call by call."""

    def __init__(self, monkeypatch, bundle):
        session_class = type(bundle.session())
        run = session_class.run
        self.inputs, self.outputs = [], []

        def spy(session, inputs, outputs, workspace=None):
            run(session, inputs, outputs, workspace)
            self.inputs.append({name: tensor.clone() for name, tensor in inputs.items()})
            self.outputs.append(set(outputs))

        monkeypatch.setattr(session_class, "run", spy)


@pytest.mark.parametrize("scheduler", ["UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_the_dense_policy_follows_the_untouched_pipeline_through_all_steps(pipe, bundle, scheduler, guidance):
    import diffusers

    pipe.scheduler = getattr(diffusers, scheduler)(**({} if "UniPC" not in scheduler else pipe.scheduler.config))
    options = {"steps": 20, "guidance_scale": guidance, "negative_prompt": "gray and flat"}
    expected = sample(pipe, **options)
    ax.accelerate(pipe, bundle, policy=Dense())
    assert difference(sample(pipe, **options), expected) <= 1e-4


def test_it_follows_it_at_the_published_text_length_of_512_and_restores_its_own_transformer(pipe, bundle):
    own = pipe.transformer
    expected = sample(pipe, steps=3, max_sequence_length=512)
    ax.accelerate(pipe, bundle, policy=Dense())
    assert difference(sample(pipe, steps=3, max_sequence_length=512), expected) <= 1e-4
    ax.restore(pipe)
    assert pipe.transformer is own
    assert difference(sample(pipe, steps=3, max_sequence_length=512), expected) == 0


def test_one_mask_of_the_prompt_serves_both_calls_of_a_sparse_step(pipe, bundle, monkeypatch):
    ax.accelerate(pipe, bundle, policy=AccelAes())
    calls = Calls(monkeypatch, bundle)
    sample(pipe, negative_prompt="glossy")
    report = pipe.transformer.report()
    assert str(report.plan) == "DDDDDD.aD"
    assert [record.kind for record in report.steps] == [step.kind for step in report.plan]
    per_step = list(zip(calls.inputs[::2], calls.inputs[1::2], strict=True))
    assert len(per_step) == 8, "a skipped step calls nothing"
    for conditional, unconditional in per_step:
        assert torch.equal(conditional["focus_index"], unconditional["focus_index"])
        assert not torch.equal(conditional["encoder_hidden_states"], unconditional["encoder_hidden_states"])
        assert conditional["token_weights"].sum() > 0 == unconditional["token_weights"].sum()
    assert [k for k, names in enumerate(calls.outputs) if "affinity" in names] == [10], "cond's call of the mask step"
    focus = report.affinity[0].sort(descending=True).indices[:18].sort().values
    assert torch.equal(report.focus_index[0], focus)
    conditional, unconditional = per_step[6]
    assert not torch.equal(conditional["cache.1.k_bg"], unconditional["cache.1.k_bg"]), "each call has its own keys"


def test_the_mask_reads_the_prompts_words_whatever_the_negative_prompt_is(pipe, bundle, monkeypatch):
    ax.accelerate(pipe, bundle, policy=AccelAes())
    calls = Calls(monkeypatch, bundle)
    sample(pipe, "an  intricate red star &amp; a plain ring", steps=7, negative_prompt="gray and flat")
    (words,) = pipe.transformer.report().words
    assert [word for word, weight in words.pairs() if weight > 0] == ["intricate", "red", "star"]
    assert words.prompt == "an intricate red star & a plain ring", "as the pipeline tidies it"
    tokens = pipe.tokenizer(words.prompt, padding="max_length", max_length=24).input_ids
    weights = calls.inputs[0]["token_weights"][0]
    pieces = pipe.tokenizer.convert_ids_to_tokens([tokens[k] for k in weights.nonzero()[:, 0]])
    assert pieces == ["\u2581intricate", "\u2581red", "\u2581star"]
    masks = []
    for negative in ("gray and flat", "something else"):
        sample(pipe, steps=7, guidance_scale=1.001, negative_prompt=negative)
        masks.append(pipe.transformer.report().affinity)
    assert torch.allclose(*masks, atol=1e-3)


def test_each_call_is_extrapolated_from_its_own_predictions(pipe, bundle):
    own, plan = pipe.transformer.forward, StepCache(warmup=3, interval=2).plan(STEPS, (0.5,))
    past = {"cond": [], "uncond": []}  # (step, prediction) of computed steps
    count = 0

    def by_hand(**given):
        nonlocal count
        i, branch = count // 2, ("cond", "uncond")[count % 2]
        count += 1
        if plan[i].kind is StepKind.DENSE:
            past[branch].append((i, own(**given)[0]))
            return (past[branch][-1][1],)
        (before, then), (last, now) = past[branch][-2:]
        return (now + (now - then) * (i - last) / (last - before),)

    pipe.transformer.forward = by_hand
    expected = sample(pipe)
    del pipe.transformer.forward
    ax.accelerate(pipe, bundle, policy=StepCache(warmup=3, interval=2))
    assert difference(sample(pipe), expected) <= 1e-4
    assert "." in str(pipe.transformer.report().plan)


@pytest.mark.parametrize("copies", [1, 2])
def test_a_batch_of_prompts_gives_every_video_its_own_focus_and_what_it_has_alone(pipe, bundle, copies):
    ax.accelerate(pipe, bundle, policy=AccelAes())
    prompts = [PROMPT, OTHER]
    generators = [torch.Generator().manual_seed(k) for k in range(2 * copies)]
    together = sample(pipe, prompts, num_videos_per_prompt=copies, generator=generators)[-1]
    report = pipe.transformer.report()
    assert [words.prompt for words in report.words] == [prompt for prompt in prompts for _ in range(copies)]
    assert not torch.equal(report.focus_index[0], report.focus_index[-1])
    for k, prompt in ((0, PROMPT), (2 * copies - 1, OTHER)):
        assert difference([together[k]], [sample(pipe, prompt, seed=k)[-1][0]]) <= 1e-4


def test_a_single_frame_is_a_picture_and_the_component_form_serves_it_too(tmp_path):
    checkpoint = save_tiny_wan(tmp_path / "checkpoint", num_layers=1)
    bundle = build_tiny_wan(checkpoint, tmp_path / "still", frames=1, form="component")
    assert (bundle.manifest.geometry.latents.size["num_frames"], bundle.manifest.geometry.contract.tokens) == (1, 12)
    pipe = load(checkpoint)
    expected = sample(pipe, num_frames=1)
    ax.accelerate(pipe, bundle, policy=Dense())
    assert difference(sample(pipe, num_frames=1), expected) <= 1e-4
    result = generate(bundle, PROMPT, steps=9, pipe=pipe)
    assert [frame.size for frame in result.frames] == [(64, 48)]
    assert [record.kind for record in result.report.steps].count(StepKind.SPARSE) == 1


def test_run_writes_a_video_and_its_mask_as_animated_pictures(bundle, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from accelaes_export.cli import main

    monkeypatch.chdir(tmp_path)
    run = ["run", str(bundle.path), "--prompt", PROMPT, "--steps", "9"]
    result = CliRunner().invoke(main, [*run, "-o", "out.png", "--mask-out", "mask.gif"])
    assert result.exit_code == 0, result.stderr
    for name in ("out.png", "mask.gif"):
        with Image.open(tmp_path / name) as picture:
            assert picture.n_frames == 9, name
            assert 55 <= picture.info["duration"] <= 65, "16 frames a second"
    result = CliRunner().invoke(main, [*run, "-o", "out.jpg"])
    assert "out.jpg names no animated format; end it with one of .png, .webp, .gif" in result.stderr
    result = CliRunner().invoke(main, ["inspect", str(bundle.path)])
    assert "48x64 (height x width), 9 frames (3 latent frames)" in result.stdout
    assert "N = 36 (3 x 3 x 4 patches of 1 x 2 x 2)" in result.stdout


def test_a_mask_is_shown_on_the_video_frames_that_its_latent_frame_becomes(bundle):
    white = [Image.new("RGB", (64, 48), "white")] * 9
    first_of_frame_1 = torch.tensor([12])
    overlays = mask_overlays(white, first_of_frame_1, bundle.manifest.geometry.latents)
    assert [overlay.getpixel((40, 40)) == (255, 255, 255) for overlay in overlays] == [False] + [True] * 4 + [False] * 4


def test_generate_gives_the_frames_the_pipeline_gives(bundle, pipe):
    settings = {**SIZE, "num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "pil"}
    expected = pipe(PROMPT, generator=torch.Generator().manual_seed(3), **settings).frames[0]
    result = generate(bundle, PROMPT, policy=Dense(), steps=4, seed=3, pipe=load_pipeline(bundle))
    assert len(result.frames) == 9 and result.image is result.frames[0]
    for found, wanted in zip(result.frames, expected, strict=True):
        pairs = zip(found.tobytes(), wanted.tobytes(), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 1


def test_wrong_uses_are_told_in_one_sentence(pipe, bundle):
    ax.accelerate(pipe, bundle)
    with pytest.raises(ax.InputError, match="height=48, width=64, num_frames=9"):
        sample(pipe, num_frames=5)
    with pytest.raises(ax.InputError, match="guide with a second call"):
        ax.accelerate(pipe, bundle, policy=AccelAes(spatial_cfg=SpatialGuidance(6.0, 3.0)))
        sample(pipe)
    ax.restore(pipe)
    with pytest.raises(ax.InputError, match="ffn_dim"):
        pipe.transformer = type(pipe.transformer).from_config({**pipe.transformer.config, "ffn_dim": 96})
        ax.accelerate(pipe, bundle)


def test_wan_2_2_pipelines_are_refused(pipe, bundle):
    pipe.register_to_config(expand_timesteps=True)
    ax.accelerate(pipe, bundle)
    with pytest.raises(ax.InputError, match="36 timesteps a row"):
        sample(pipe)
    ax.restore(pipe)
    pipe.transformer_2 = pipe.transformer
    with pytest.raises(ax.InputError, match="two transformers"):
        ax.accelerate(pipe, bundle)


def test_what_cannot_be_built_is_refused_before_anything_is_written(checkpoint, tmp_path):
    def refused(said, folder=checkpoint, **options):
        with pytest.raises(ax.InputError, match=said):
            build_tiny_wan(folder, tmp_path / "no", **options)
        assert not (tmp_path / "no").exists()

    refused("height 40 doesn't fit", resolution=(40, 64))
    refused("33 latent frames don't fit", frames=33)
    with pytest.raises(ax.InputError, match="wan makes videos, and no frames were given"):
        backbone_of("wan").latents(load(checkpoint).transformer.config, (48, 64), 8)
    refused("width 528 needs 33 positions", resolution=(48, 528))
    pictured = save_tiny_wan(tmp_path / "i2v", image_dim=16, added_kv_proj_dim=48, in_channels=36, out_channels=16)
    refused("starts from a picture", pictured)
    with pytest.raises(ax.InputError, match="3 frames were asked for, but sd3 makes pictures"):
        ax.build(model="shapes", frames=3, output=tmp_path / "no")
    with pytest.raises(ax.InputError, match="describes a WanTransformer3DModel, and the family sd3"):
        ax.build(checkpoint, model="sd3", output=tmp_path / "no")


class TestAlone(CompleteBundle):
    asked_for = PROMPT
    encoders = ("text_encoder",)
