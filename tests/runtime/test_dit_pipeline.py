"""The DiT pipeline with a bundle in it: classes instead of a text, nothing to choose tokens by."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import accelaes_export as ax
from accelaes_export import recipes
from accelaes_export.backbones import backbone_of
from accelaes_export.backbones.checkpoints import complete_config, random_transformer
from accelaes_export.cli import main
from accelaes_export.policies import AccelAes, Dense, StepCache
from accelaes_export.runtime.generate import generate, load_pipeline
from tests.runtime.any_pipeline import AnyPipeline, Case
from tests.runtime.complete_bundle import CompleteBundle, DrawsNatively
from tests.trajectories import follows

DIT = backbone_of("dit")
CLASSES = {2: "great white shark, white shark", 207: "golden retriever"}
CONFIG = {"sample_size": 12, "out_channels": 8, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4}


def transformer():
    return random_transformer(DIT, complete_config(DIT, CONFIG), "fp32", 0)


@pytest.fixture(scope="module")
def parts():
    from diffusers import AutoencoderKL, DDIMScheduler

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    return {"vae": vae.eval(), "scheduler": DDIMScheduler(clip_sample=False)}


@pytest.fixture(scope="module")
def bundle(parts, tmp_path_factory):
    """A bundle of a whole DiT pipeline, with names for two of its 1000 classes."""
    from diffusers import DiTPipeline

    checkpoint = tmp_path_factory.mktemp("dit") / "checkpoint"
    DiTPipeline(**parts, transformer=transformer()).save_pretrained(checkpoint)
    index = checkpoint / "model_index.json"  # diffusers reads the names there, and doesn't write them
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": CLASSES}))
    recipe = recipes.load("dit-xl-2").override(vae_scale=2, steps=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "load", lambda _: recipe)
        output = checkpoint.parent / "bundle"
        return ax.build(
            checkpoint,
            model="dit-xl-2",
            output=output,
            dtype="fp32",
            resolution=(24, 24),
            components="all",
            presets=("dense", "drift:budget=8"),
        )


@pytest.fixture
def pipe(parts):
    from diffusers import DDIMScheduler, DiTPipeline

    scheduler = DDIMScheduler(clip_sample=False)  # as published: latents know no bounds
    pipe = DiTPipeline(vae=parts["vae"], scheduler=scheduler, transformer=transformer())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, classes=207, steps=8, stop_after=None, **options):
    """What the scheduler made of every step, which has the pairs' halves one after the other; there is no callback."""
    classes = classes if isinstance(classes, list) else [classes]
    trajectory, step = [], pipe.scheduler.step

    def watched(*args, **kwargs):
        if len(trajectory) == stop_after:
            raise KeyboardInterrupt
        result = step(*args, **kwargs)
        trajectory.append(result.prev_sample.clone())
        return result

    pipe.scheduler.step = watched
    try:
        defaults = {"generator": [torch.Generator().manual_seed(k) for k in range(len(classes))], "output_type": "pt"}
        pipe(classes, num_inference_steps=steps, **defaults | options)
    finally:
        del pipe.scheduler.step
    return trajectory


class TestAsAnyPipeline(AnyPipeline):
    case = Case(
        tuned=False,
        sample=sample,
        calls={
            "as it is": {},
            "two images": {"steps": 3, "classes": [2, 207]},
            "without guidance": {"steps": 3, "guidance_scale": 1.0},
        },
        argument="classes",
        prompts=(207, 2),
        plans=((StepCache(warmup=3), "DDD.D.DD"),),
        n=None,
    )


class TestAlone(CompleteBundle, DrawsNatively):
    asked_for = "golden retriever"
    encoders = ()

    def begin(self, run, opened):
        label = next(int(number) for number, name in CLASSES.items() if self.asked_for in name)
        labels = [1000, label] if opened.facts.uncond_first else [label, 1000]
        run.input(class_labels=np.array(labels))


def test_a_scheduler_that_keeps_count_is_followed_as_well(pipe, bundle):
    from diffusers import DPMSolverMultistepScheduler

    pipe.scheduler = DPMSolverMultistepScheduler()
    expected = sample(pipe)
    ax.accelerate(pipe, bundle, policy=Dense())
    for _ in range(2):
        assert follows(sample(pipe), expected)


def test_every_run_begins_anew_also_after_a_cancelled_one(pipe, bundle):
    ax.accelerate(pipe, bundle)
    first = sample(pipe)
    report = pipe.transformer.report()
    assert (str(report.plan), report.words, report.focus_index) == ("DDDDD.DD", (), None)
    assert [record.kind for record in report.steps] == [step.kind for step in report.plan]
    with pytest.raises(KeyboardInterrupt):
        sample(pipe, classes=2, stop_after=6)
    assert all(torch.equal(a, b) for a, b in zip(sample(pipe), first, strict=True))
    sample(pipe, steps=10)
    assert str(pipe.transformer.report().plan) == "DDDDD.D.DD"


@pytest.mark.parametrize("wanted", ["white shark", " great white shark", "2"])
def test_run_draws_a_class_by_its_name_or_number(bundle, wanted):
    pipe = load_pipeline(bundle)
    result = generate(bundle, wanted, pipe=pipe)
    assert result.image.size == (24, 24)
    assert (str(result.report.plan), result.cut) == (bundle.manifest.defaults.plan, "")
    ax.restore(pipe)
    pipe.transformer = transformer()
    ax.accelerate(pipe, bundle)
    picture = pipe([2], guidance_scale=4.0, generator=torch.Generator().manual_seed(0), num_inference_steps=8).images[0]
    assert picture.tobytes() == result.image.tobytes()


def test_the_command_line_takes_a_class_for_a_prompt(bundle, tmp_path):
    picture = tmp_path / "shark.png"
    command = ["run", str(bundle.path), "--prompt", "white shark", "--steps", "6", "-o", str(picture)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "Plan of stepcache, 6 steps" in result.output
    assert Image.open(picture).size == (24, 24)


def test_a_class_that_is_none_is_told(pipe, bundle):
    with pytest.raises(ax.InputError, match="'whit shark' is none of its 3 ones; .*such as white shark"):
        generate(bundle, "whit shark")
    with pytest.raises(ax.InputError, match="'5000' is none"):
        generate(bundle, "5000")
    ax.accelerate(pipe, bundle)
    with pytest.raises(ax.InputError, match="class_labels has 5000, but this model knows 0 to 1000 alone"):
        sample(pipe, (5000, 2))
    with pytest.raises(ax.InputError, match="'shark' is none of its numbered ones"):
        generate(bundle, "shark", pipe=pipe)
    assert sample(pipe, (1000,))[-1].isfinite().all(), "no class is one too"


def test_what_needs_a_text_or_another_size_is_told_in_one_sentence(pipe, bundle, tmp_path):
    ax.accelerate(pipe, bundle, policy=AccelAes())
    with pytest.raises(ax.InputError, match="needs a mask from the text, and this model has no text; take .*stepcache"):
        sample(pipe, steps=28)
    ax.accelerate(pipe, bundle)
    with pytest.raises(ax.InputError, match="lacks class_labels"):
        pipe.transformer(torch.zeros(1, 4, 12, 12), timestep=torch.ones(1))
    for size in ((24, 48), (48, 48)):
        with pytest.raises(ax.InputError, match="squares of its own size alone; give 24x24"):
            DIT.latents(complete_config(DIT, CONFIG), size, 2)
    with pytest.raises(ax.InputError, match="128x256 was asked for.*give 256x256"):
        ax.build(model="dit-xl-2", random_weights=True, resolution=(128, 256), output=tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
