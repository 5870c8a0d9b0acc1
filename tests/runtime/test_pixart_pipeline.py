"""PixArt pipelines with a bundle in them: masked text, sizes embedded or not, predictions with a learned variance."""

from __future__ import annotations

import json

import pytest
import torch

import accelaes_export as ax
from accelaes_export import recipes
from accelaes_export.backbones import backbone_of
from accelaes_export.backbones.checkpoints import complete_config, random_transformer, resolve
from accelaes_export.policies import AccelAes, Dense, StepCache
from accelaes_export.runtime.generate import generate, load_pipeline
from accelaes_export.tuning.recording import Recording
from accelaes_export.tuning.walk import ended
from tests.policies.small_tokenizers import t5_tokenizer
from tests.runtime.any_pipeline import AnyPipeline, Case
from tests.runtime.complete_bundle import CompleteBundle, DrawsNatively
from tests.trajectories import difference, follows

PIXART = backbone_of("pixart")
PROMPT = "An INTRICATE red Star on the left"  # T5 gets it in small letters
OTHER = "a glossy green circle"
WINDOW = 24  # text tokens
SIZE = {"height": 32, "width": 24}  # 8 x 6 tokens, as the tiny VAE halves both sides once
ACCELAES = AccelAes(mask_step=2, warmup=3)
CONFIG = {
    "sample_size": 128,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 3,
    "cross_attention_dim": 48,
    "caption_channels": 32,
}
SIGMA = {"interpolation_scale": 2, "use_additional_conditions": False}


@pytest.fixture(scope="module")
def parts():
    """What both pipelines have beside their transformer."""
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    tokenizer = t5_tokenizer(("\u2581intric", "ate", "\u2581red", "\u2581star", "\u2581on", "\u2581the"))
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": T5EncoderModel(config).eval(),
        "vae": vae.eval(),
        "scheduler": DPMSolverMultistepScheduler(),
    }


def transformer(**changes):
    return random_transformer(PIXART, complete_config(PIXART, CONFIG | changes), "fp32", 0)


PRESETS = ("dense", "accelaes:mask_step=2:warmup=3", "drift:budget=8")


def build(checkpoint, model, **options):
    recipe = recipes.load(model)
    tiny = recipe.override(
        vae_scale=2, text=[{"tokenizers": ["tokenizer"], "length": WINDOW}], steps=8, policy={"name": "stepcache"}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "load", lambda _: tiny)
        return ax.build(
            checkpoint, model=model, output=checkpoint.parent / "bundle", dtype="fp32", resolution=tuple(SIZE.values()),
            buckets="0.5", affinity_every=1, **options,
        )  # fmt: skip


@pytest.fixture(scope="module")
def alpha(parts, tmp_path_factory):
    """A bundle of a whole PixArt-Alpha pipeline, which tells the transformer the picture's size."""
    from diffusers import PixArtAlphaPipeline

    checkpoint = tmp_path_factory.mktemp("alpha") / "checkpoint"
    PixArtAlphaPipeline(**parts, transformer=transformer()).save_pretrained(checkpoint)
    return build(checkpoint, "pixart-alpha", components="all", presets=PRESETS)


@pytest.fixture(scope="module")
def sigma(tmp_path_factory):
    """A bundle of a PixArt-Sigma transformer, in the component form, from a config as such models were published."""
    checkpoint = tmp_path_factory.mktemp("sigma") / "checkpoint"
    transformer(**SIGMA).save_pretrained(checkpoint)
    written = json.loads((checkpoint / "config.json").read_text())
    published = {"_class_name": "Transformer2DModel", "num_vector_embeds": None, "only_cross_attention": False}
    (checkpoint / "config.json").write_text(json.dumps(written | published))
    return build(checkpoint, "pixart-sigma", form="component")


@pytest.fixture
def pipe(parts):
    return pipeline("PixArtAlphaPipeline", parts)


def pipeline(name, parts, **changes):
    import diffusers

    pipe = getattr(diffusers, name)(**parts, transformer=transformer(**changes))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, prompt=PROMPT, **options):
    """The latents after every step."""
    trajectory = []
    count = len(prompt) if isinstance(prompt, list) else 1
    defaults = {
        "num_inference_steps": 8,
        "generator": [torch.Generator().manual_seed(k) for k in range(count)],
        "max_sequence_length": WINDOW,
        "clean_caption": False,
        "use_resolution_binning": False,
        "callback": lambda i, t, latents: trajectory.append(latents.clone()),
        "output_type": "latent",
    }
    pipe(prompt, **defaults | SIZE | options)
    return trajectory


class TestAsAnyPipeline(AnyPipeline):
    case = Case(
        tuned=False,
        sample=sample,
        calls={
            "as it is": {},
            "without guidance": {"num_inference_steps": 3, "guidance_scale": 1.0},
            "two images of one prompt": {
                "num_inference_steps": 3,
                "negative_prompt": "a blue ring",
                "num_images_per_prompt": 2,
                "generator": None,
                "latents": torch.ones(2, 4, 16, 12),
            },
            "a longer text": {"num_inference_steps": 3, "max_sequence_length": 40},
        },
        prompts=(PROMPT, OTHER),
        words=(PROMPT.lower(), OTHER),
        plans=((StepCache(warmup=3), "DDD.D.DD"), (ACCELAES, "DDD.a.Da")),
        n=24,
    )

    @pytest.fixture
    def bundle(self, alpha):
        return alpha


def test_tuning_goes_as_the_pipeline_does_with_a_solver_of_order_one(pipe, alpha):
    from diffusers import DPMSolverMultistepScheduler

    pipe.scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=1, flow_shift=2.0
    )
    recording = Recording(pipe, alpha, 4.5)
    schedule, conditions = recording.schedule(PROMPT, 5), recording.conditions([PROMPT], seed=0)
    found = ended(alpha, conditions, schedule, 4.5, Dense())
    options = {"num_inference_steps": 5, "guidance_scale": 4.5, "max_sequence_length": WINDOW}
    *_, wanted = sample(pipe, **options)
    assert difference([found], [wanted]) < 1e-4
    (drawn,) = recording.pictures(found, OTHER)
    with torch.no_grad():
        decoded = pipe.vae.decode(found / pipe.vae.config.scaling_factor).sample
    (right,) = pipe.image_processor.postprocess(decoded, output_type="np")
    assert drawn.shape == (*SIZE.values(), 3) and abs(drawn - right).max() < 1e-4


class TestAlone(CompleteBundle, DrawsNatively):
    asked_for = PROMPT
    encoders = ("text_encoder",)

    @pytest.fixture
    def bundle(self, alpha):
        return alpha


def test_a_scheduler_that_keeps_no_count_is_counted_for(pipe, alpha):
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler(clip_sample=False)  # latents know no bounds
    expected = sample(pipe, num_inference_steps=4)
    ax.accelerate(pipe, alpha, policy=Dense())
    for _ in range(2):
        assert follows(sample(pipe, num_inference_steps=4), expected)


@pytest.mark.parametrize("name", ["PixArtSigmaPipeline", "PixArtAlphaPipeline"])  # the second gives sizes all the same
def test_sigma_in_the_component_form_follows_its_pipeline_and_skips_as_planned(parts, sigma, name):
    pipe = pipeline(name, parts, **SIGMA)
    expected = sample(pipe)
    ax.accelerate(pipe, sigma, policy=Dense())
    assert follows(sample(pipe), expected)
    ax.accelerate(pipe, sigma, policy=ACCELAES)
    assert sample(pipe)[-1].isfinite().all()
    report = pipe.transformer.report()
    assert (str(report.plan), report.focus_index.shape) == ("DDD.a.Da", (1, 24))


def test_words_weigh_at_the_positions_t5_gives_them_whatever_their_case(pipe, alpha, monkeypatch):
    ax.accelerate(pipe, alpha, policy=ACCELAES)
    session, seen = pipe.transformer.served[0].session, []
    run = session.run

    def watched(given, outputs, workspace=None):
        seen.append(given["token_weights"].clone())
        return run(given, outputs, workspace)

    monkeypatch.setattr(session, "run", watched)
    sample(pipe)
    (words,) = pipe.transformer.report().words
    assert (words.prompt, words.scorer) == (PROMPT.lower(), "lexical")
    heavy = [word for word, weight in words.pairs() if weight > 0]
    assert heavy == ["intricate", "red", "star"]
    uncond, cond = seen[0]
    assert not uncond.any()
    pieces = pipe.tokenizer.convert_ids_to_tokens(pipe.tokenizer(PROMPT.lower())["input_ids"])
    weighed = [piece for piece, weight in zip(pieces, cond.tolist(), strict=False) if weight > 0]
    assert weighed == ["\u2581intric", "ate", "\u2581red", "\u2581star"]
    assert not cond[len(pieces) :].any(), "padding weighs nothing"


def test_run_makes_a_picture_and_says_which_words_the_encoder_left_out(alpha):
    pipe, steps = load_pipeline(alpha), []
    result = generate(alpha, f"{PROMPT}, {OTHER}", pipe=pipe, on_step=lambda i, _: steps.append(i))
    assert result.image.size == (SIZE["width"], SIZE["height"])
    assert str(result.report.plan) == alpha.manifest.defaults.plan
    assert steps == list(range(8))
    assert result.cut.endswith("circle")
    assert generate(alpha, "RED STAR", pipe=pipe, steps=2).cut == ""


def test_what_the_engine_can_not_do_is_told_in_one_sentence(pipe, alpha, sigma):
    ax.accelerate(pipe, alpha, policy=Dense())
    sizes = "call the pipeline with height=32, width=24 .and use_resolution_binning=False"
    with pytest.raises(ax.InputError, match=sizes):
        sample(pipe, height=24, width=32)
    with pytest.raises(ax.InputError, match=sizes):  # which makes 1024 x 1024 of it
        sample(pipe, use_resolution_binning=True)
    call = {"encoder_hidden_states": torch.zeros(1, WINDOW, 32), "timestep": torch.ones(1)}
    size = {"resolution": None, "aspect_ratio": None}
    with pytest.raises(ax.InputError, match="lacks encoder_attention_mask, resolution, aspect_ratio"):
        pipe.transformer(torch.zeros(1, 4, 16, 12), **call, added_cond_kwargs=size)
    mask = {"encoder_attention_mask": torch.ones(1, WINDOW), "attention_mask": torch.ones(1, 48)}
    given = {"added_cond_kwargs": {"resolution": torch.ones(1, 2), "aspect_ratio": torch.ones(1, 1)}}
    with pytest.raises(ax.InputError, match="no input for attention_mask"):
        pipe.transformer(torch.zeros(1, 4, 16, 12), **call, **mask, **given)
    with pytest.raises(ax.InputError, match="interpolation_scale"):
        ax.accelerate(pipe, sigma)
    with pytest.raises(ax.InputError, match="serves PixArtAlphaPipeline, PixArtSigmaPipeline"):
        ax.accelerate(object(), alpha)


def test_what_can_not_be_built_is_told_before_anything_is_written(alpha, tmp_path):
    checkpoint = alpha.manifest.source.location
    with pytest.raises(ax.InputError, match="describes a PixArtTransformer2DModel, and the family dit"):
        ax.build(checkpoint, model="dit-xl-2", output=tmp_path / "bundle")
    with pytest.raises(ax.InputError, match="height 1000 doesn't fit.*multiple of 16"):
        ax.build(checkpoint, model="pixart-alpha", output=tmp_path / "bundle", resolution=(1000, 1024))
    with pytest.raises(ax.InputError, match="no cross_attention_dim"):
        PIXART.conditioning(complete_config(PIXART, CONFIG | {"cross_attention_dim": None}), "fp32")
    transformer().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "Transformer2DModel"}))
    with pytest.raises(ax.InputError, match="describes a PixArtTransformer2DModel, and the family dit"):
        resolve(tmp_path, backbone_of("dit"))
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
