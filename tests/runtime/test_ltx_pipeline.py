"""A small LTX-Video pipeline with a bundle in it: packed latents of videos, pairs of guidance, a masked text."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

import accelaes_export as ax
from accelaes_export.errors import InputError
from accelaes_export.policies import AccelAes, Dense, StepCache, StepKind
from accelaes_export.runtime.arguments import is_of_size
from accelaes_export.runtime.generate import generate, load_pipeline
from tests.families.ltx import FAMILY
from tests.policies.small_tokenizers import t5_tokenizer
from tests.runtime.any_pipeline import AnyPipeline, Case
from tests.runtime.complete_bundle import CompleteBundle, DrawsNatively
from tests.trajectories import sampled

PROMPT = "an intricate red star, plain blue background"
OTHER = "glossy"
SIZE = {"height": 128, "width": 96, "num_frames": 17}  # 3 latent frames of 4 x 3 cells: N = 36
STEPS = 9
CELLS = 8  # latent channels


def save_tiny_ltx(folder):
    """An LTX pipeline with random weights, its classes and scheduler as published; returns the folder."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    tokenizer = t5_tokenizer(("\u2581intricate", "\u2581red", "\u2581star", "\u2581glossy", "\u2581background"))
    torch.manual_seed(0)
    encoder = T5Config(vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=3)
    few = {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5}
    vae = AutoencoderKLLTXVideo(
        latent_channels=CELLS, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, **few
    )
    LTXPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(encoder).eval(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
        transformer=LTXVideoTransformer3DModel(**FAMILY.config).eval(),
    ).save_pretrained(folder)
    return folder


def build_tiny_ltx(checkpoint, output, **options):
    tiny = {"resolution": (128, 96), "frames": 3, "dtype": "fp32", "buckets": "0.5", "affinity_every": 1}
    return ax.build(checkpoint, model="ltx-video", output=output, **tiny | options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_ltx(tmp_path_factory.mktemp("ltx") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    return build_tiny_ltx(
        checkpoint, tmp_path_factory.mktemp("ltx-bundle") / "bundle", components="all", presets="dense,drift:budget=4"
    )


@pytest.fixture
def pipe(checkpoint):
    from diffusers import LTXPipeline

    pipe = LTXPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, prompt=PROMPT, steps=STEPS, seed=0, **options):
    """The latents after every step."""
    defaults = SIZE | {"guidance_scale": 3.0, "max_sequence_length": 24}
    return sampled(pipe, prompt, seed=seed, num_inference_steps=steps, **defaults | options)


class TestAsAnyPipeline(AnyPipeline):
    case = Case(
        sample=sample,
        calls={"guided": {}, "without guidance": {"guidance_scale": 1.0}, "two texts": {"prompt": [PROMPT, OTHER]}},
        prompts=(PROMPT, OTHER),
        words=(PROMPT, OTHER),
        plans=((StepCache(warmup=3, interval=2), "DDD.D.D.D"), (AccelAes(), "DDDDDD.aD")),
        n=18,
    )


def test_the_mask_is_where_the_prompts_words_are_attended_to(pipe, bundle):
    ax.accelerate(pipe, bundle, policy=AccelAes())
    sample(pipe)
    report = pipe.transformer.report()
    assert str(report.plan) == "DDDDDD.aD" and [record.kind for record in report.steps].count(StepKind.SPARSE) == 1
    (words,) = report.words
    assert [word for word, weight in words.pairs() if weight > 0] == ["intricate", "red", "star"]
    focus = report.affinity[0].sort(descending=True).indices[:18].sort().values
    assert torch.equal(report.focus_index[0], focus)


def test_generate_and_run_give_the_frames_the_pipeline_gives(pipe, bundle, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from accelaes_export.cli import main

    settings = {**SIZE, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "pil"}
    expected = pipe(PROMPT, generator=torch.Generator().manual_seed(3), **settings).frames[0]
    result = generate(bundle, PROMPT, policy=Dense(), steps=3, seed=3, pipe=load_pipeline(bundle))
    assert len(result.frames) == 17
    for found, wanted in zip(result.frames, expected, strict=True):
        assert max(abs(a - b) for a, b in zip(found.tobytes(), wanted.tobytes(), strict=True)) <= 1
    monkeypatch.chdir(tmp_path)
    run = ["run", str(bundle.path), "--prompt", PROMPT, "--steps", "9", "-o", "out.png", "--mask-out", "mask.gif"]
    result = CliRunner().invoke(main, run)
    assert result.exit_code == 0, result.stderr
    for name, enlarged in (("out.png", 1), ("mask.gif", 4)):
        with Image.open(tmp_path / name) as video:
            assert (video.n_frames, video.size) == (17, (96 * enlarged, 128 * enlarged)), name


def test_a_call_says_in_plain_numbers_which_of_several_grids_its_tokens_are_of(bundle):
    geometry, latents = bundle.manifest.geometry, torch.empty(2, 36, CELLS)
    assert is_of_size(geometry, latents, {"num_frames": 3, "height": 4, "width": 3})
    assert not is_of_size(geometry, latents, {"num_frames": 3, "height": 3, "width": 4})
    assert not is_of_size(geometry, latents[:, :24], {"num_frames": 2, "height": 4, "width": 3})


def test_wrong_uses_are_told_in_one_sentence(pipe, bundle):
    ax.accelerate(pipe, bundle)
    with pytest.raises(ax.InputError, match="rope_interpolation_scale"):
        sample(pipe, frame_rate=30)
    for wrong in ({"num_frames": 9}, {"height": 96, "width": 128}, {"height": 64, "width": 192}):
        with pytest.raises(ax.InputError, match="height=128, width=96, num_frames=17"):
            sample(pipe, **wrong)


class TestAlone(CompleteBundle, DrawsNatively):
    asked_for = PROMPT
    encoders = ("text_encoder",)


def test_a_vae_that_takes_a_timestep_is_refused_in_a_sentence(checkpoint, tmp_path):
    """Published since version 0.9.1 of the model."""
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    config = tmp_path / "checkpoint" / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"timestep_conditioning": True}))
    with pytest.raises(
        InputError, match=r"takes a timestep \(timestep_conditioning\), .* leave vae out of --components"
    ):
        build_tiny_ltx(tmp_path / "checkpoint", tmp_path / "bundle", components="vae")
