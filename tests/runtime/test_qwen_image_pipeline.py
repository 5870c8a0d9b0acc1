"""A Qwen-Image pipeline with a bundle in it: prompts in a template, texts of any length, guidance by a second call."""

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
from accelaes_export.backends.onnxruntime import OnnxRuntimeBackend
from accelaes_export.policies import AccelAes, Dense, SpatialGuidance, StepCache
from accelaes_export.runtime.generate import generate, load_pipeline
from tests.native.library import NativeError
from tests.policies.small_tokenizers import qwen_tokenizer
from tests.runtime.any_pipeline import AnyPipeline, Case
from tests.runtime.complete_bundle import CompleteBundle, DrawsNatively
from tests.trajectories import follows, sampled

PROMPT = "an intricate red star on the left"
OTHER = "a glossy green circle"
NEGATIVE = "blurry"
HEIGHT, WIDTH = 32, 24  # 8 x 6 tokens, as the tiny VAE halves both sides once
SIZE = {"height": HEIGHT, "width": WIDTH}
GUIDED = {"true_cfg_scale": 4.0, "negative_prompt": NEGATIVE}
PRESETS = "dense,stepcache,drift:budget=4"
ACCELAES = AccelAes(mask_step=2, warmup=3)  # DDD.b.Db
# What the pipeline writes before a prompt makes 34 tokens of the published tokenizer, and of one that has these words.
TEMPLATE_WORDS = (
    " the image by detailing color shape size texture quantity text spatial relationships of objects and background"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole pipeline of small random parts, saved as diffusers saves it."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    words = [f" {word}" for word in (*TEMPLATE_WORDS.split(), "intricate", "star")]
    tokenizer = qwen_tokenizer((*words, "Describe", "system", "user", "assistant"))
    text_config = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1,
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]},  # as published
    }  # fmt: skip
    vision_config = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    text_encoder = Qwen2_5_VLForConditionalGeneration(
        # The last as published, which transformers 4 has no default for.
        Qwen2_5_VLConfig(text_config=text_config, vision_config=vision_config, vision_start_token_id=151652)
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, 0.0, -0.1, 0.2], latents_std=[1.0, 2.0, 0.5, 1.0],
    )  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    folder = tmp_path_factory.mktemp("qwen-image") / "checkpoint"
    QwenImagePipeline(scheduler, vae, text_encoder, tokenizer, transformer).save_pretrained(folder)
    return folder


def tiny_build(checkpoint, output, length=512, **options):
    recipe = recipes.load("qwen-image")
    (segment,) = recipe.model_dump()["text"]
    tiny = recipe.override(vae_scale=2, text=[segment | {"length": length}], steps=8, policy={"name": "stepcache"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "load", lambda _: tiny)
        return ax.build(
            checkpoint,
            model="qwen-image",
            output=output,
            dtype="fp32",
            resolution=(HEIGHT, WIDTH),
            affinity_every=1,
            **options,
        )


@pytest.fixture(scope="module")
def bundle(checkpoint):
    return tiny_build(checkpoint, checkpoint.parent / "bundle", components="all", presets=PRESETS)


@pytest.fixture(scope="module")
def parts(checkpoint):
    from diffusers import QwenImagePipeline

    return QwenImagePipeline.from_pretrained(checkpoint, torch_dtype=torch.float32).components


@pytest.fixture
def make(parts):
    """A pipeline of the named class from the checkpoint's parts."""

    def pipeline(name="QwenImagePipeline"):
        import diffusers

        pipe = getattr(diffusers, name)(**parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return pipeline


@pytest.fixture
def pipe(make):
    return make()


def sample(pipe, prompt=PROMPT, **options):
    """The latents after every step."""
    return sampled(pipe, prompt, **SIZE | GUIDED | {"num_inference_steps": 8} | options)


class TestAsAnyPipeline(AnyPipeline):
    case = Case(
        tuned=False,
        sample=sample,
        calls={
            "guided": {},
            "without guidance": {"true_cfg_scale": 1.0},
            "two texts of different length, one of them padded": {
                "prompt": [PROMPT, OTHER],
                "negative_prompt": ["", NEGATIVE],
            },
        },
        prompts=(PROMPT, OTHER),
        together={"negative_prompt": [NEGATIVE] * 2},
        words=(PROMPT, OTHER),
        plans=((StepCache(warmup=3), "DDD.D.DD"), (ACCELAES, "DDD.b.Db")),
        n=24,
    )


@pytest.fixture
def seen(bundle, monkeypatch):
    """The token weights of every call of the engine."""
    session, weights = bundle.session(), []
    run = session.run
    monkeypatch.setattr(
        session, "run", lambda inputs, *rest: (weights.append(inputs["token_weights"].clone()), run(inputs, *rest))
    )
    return weights


def test_the_bundle_was_verified_and_its_graph_has_no_complex_numbers_no_float64_and_no_boolean_masks(bundle):
    assert all(result.passed for result in bundle.manifest.geometry.parity)
    assert bundle.manifest.geometry.contract.rows == 1, "no call has both halves of a pair"
    graph = onnx.load(bundle.path / bundle.manifest.backend.files[0]).graph
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    made = {
        *(tensor.data_type for tensor in graph.initializer),
        *(a.t.data_type for a in attributes if a.HasField("t")),
    }
    made |= {a.i for node in graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"}
    assert made <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32}


def test_words_weigh_at_their_positions_behind_the_dropped_beginning_of_the_template(pipe, bundle, seen):
    template, drop = pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx
    prefix = template[: template.index("{}")]
    assert len(pipe.tokenizer(prefix)["input_ids"]) == drop == 34, "as the published tokenizer makes of it"
    ax.accelerate(pipe, bundle, policy=ACCELAES)
    sample(pipe)
    (words,) = pipe.transformer.report().words
    assert words.scorer == "lexical"
    assert [word for word, weight in words.pairs() if weight > 0] == ["intricate", "red", "star"]
    pieces = pipe.tokenizer.tokenize(template.format(PROMPT))[drop:]
    conditional, unconditional = seen[:2]
    assert conditional.shape == (1, len(pieces)), "one text, without padding"
    assert not unconditional.any()
    assert unconditional.shape != conditional.shape
    heavy = [piece for piece, weight in zip(pieces, conditional[0].tolist(), strict=True) if weight > 0]
    assert "".join(heavy).split("\u0120") == ["", "intricate", "red", "star"]


def test_the_second_call_of_a_step_keeps_a_cache_of_its_own(pipe, bundle):
    ax.accelerate(pipe, bundle, policy=ACCELAES)
    alone = sample(pipe, true_cfg_scale=1.0)
    # Guided by so little, the conditional call alone counts: the other one's text and cache mustn't have touched it.
    assert follows(sample(pipe, true_cfg_scale=1.0 + 1e-7), alone)


@pytest.mark.parametrize("name", ["QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"])
def test_a_picture_to_start_from_shortens_the_plan(make, bundle, name):
    pipe = make(name)
    options = {"image": Image.new("RGB", (WIDTH, HEIGHT), "teal"), "strength": 0.6, "num_inference_steps": 10}
    if name == "QwenImageInpaintPipeline":
        options["mask_image"] = Image.new("L", (WIDTH, HEIGHT), 255)
    expected = sample(pipe, **options)
    ax.accelerate(pipe, bundle, policy=Dense())
    assert follows(sample(pipe, **options), expected)
    assert len(pipe.transformer.report().plan) == 6


def test_run_guides_with_the_true_scale_and_says_which_words_have_no_room(pipe, bundle):
    lean = load_pipeline(bundle)
    result = generate(bundle, PROMPT, pipe=lean, policy=Dense(), steps=3)
    assert (result.image.size, result.cut) == ((WIDTH, HEIGHT), "")
    expected = pipe(PROMPT, " ", 4.0, HEIGHT, WIDTH, 3, generator=torch.manual_seed(0)).images[0]
    found, wanted = (torch.tensor(list(image.convert("RGB").tobytes())) for image in (result.image, expected))
    assert (found - wanted).abs().max() <= 1
    long = generate(bundle, "star " * 600 + OTHER, pipe=lean, policy=StepCache(warmup=2), steps=4)
    assert long.cut.endswith(f"star {OTHER}")


@pytest.mark.thorough
def test_an_engine_with_a_fixed_window_takes_shorter_texts_and_refuses_longer_ones(
    checkpoint, pipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(OnnxRuntimeBackend, "dynamic_text", False)
    fixed = tiny_build(checkpoint, tmp_path / "bundle", length=30)
    expected = sample(pipe)
    ax.accelerate(pipe, fixed, policy=Dense())
    assert follows(sample(pipe), expected)
    ax.accelerate(pipe, fixed, policy=ACCELAES)
    sample(pipe)
    with pytest.raises(ax.InputError, match="takes 30 text tokens and got"):
        sample(pipe, f"{PROMPT}, {OTHER}")
    assert len(sample(pipe, f"{PROMPT}, {OTHER}", max_sequence_length=30)) == 8


def test_what_the_engine_can_not_do_is_told_in_one_sentence(pipe, bundle):
    ax.accelerate(pipe, bundle, policy=Dense())
    for height, width in ((HEIGHT, 32), (WIDTH, HEIGHT)):  # the second has as many tokens
        with pytest.raises(
            ax.InputError, match=r"img_shapes number .* 8 x 6; call the pipeline with height=32, width=24"
        ):
            sample(pipe, height=height, width=width)
    two = {"img_shapes": [[(1, 8, 6), (1, 4, 4)]], "timestep": torch.ones(1)}  # as pipelines for editing call it
    with pytest.raises(ax.InputError, match="number 8 x 6 and 4 x 4 tokens"):
        pipe.transformer(torch.zeros(1, 64, 16), torch.zeros(1, 9, 32), **two)
    with pytest.raises(ax.InputError, match="no input for scale"):
        sample(pipe, attention_kwargs={"scale": 0.5})
    with pytest.raises(ax.InputError, match="lacks encoder_hidden_states, encoder_hidden_states_mask"):
        pipe.transformer(torch.zeros(1, 48, 16), timestep=torch.ones(1))
    with pytest.raises(ax.InputError, match="controlnet_block_samples"):
        pipe.transformer(
            torch.zeros(1, 48, 16), torch.zeros(1, 9, 32), timestep=torch.ones(1), controlnet_block_samples=[1]
        )
    ax.accelerate(pipe, bundle, policy=AccelAes(mask_step=2, spatial_cfg=SpatialGuidance(5.0, 3.0)))
    with pytest.raises(ax.InputError, match="guide with a second call"):
        sample(pipe)


def test_what_can_not_be_built_is_told_before_anything_is_written(checkpoint, tmp_path):
    with pytest.raises(ax.InputError, match="describes a QwenImageTransformer2DModel, and the family flux"):
        ax.build(checkpoint, model="flux-dev", output=tmp_path / "bundle", dtype="fp32")
    backbone = backbone_of("qwen-image")
    with pytest.raises(ax.InputError, match="multiple of 16"):
        backbone.latents(complete_config(backbone, {}), (1000, 1024), 8)
    assert backbone.latents(complete_config(backbone, {}), (1328, 1328), 8).tokens == 6889
    with pytest.raises(ax.InputError, match="zero_cond_t.*only models for text to image"):
        backbone.latents(complete_config(backbone, {"zero_cond_t": True}), (1024, 1024), 8)
    with pytest.raises(ax.InputError, match="takes 64 numbers a token and predicts 64 channels"):
        backbone.latents(complete_config(backbone, {"out_channels": None}), (1024, 1024), 8)
    assert not list(tmp_path.iterdir())


class TestAlone(CompleteBundle, DrawsNatively):
    asked_for = PROMPT
    encoders = ("text_encoder",)

    @pytest.fixture(autouse=True)
    def texts(self, parts, make):
        """What the pipeline makes of both texts before it reads them."""
        self.tokenizer, template = parts["tokenizer"], make().prompt_template_encode
        self.texts = [template.format(text) for text in (self.asked_for, " ")]

    def ids(self, **options):
        found = self.tokenizer(self.texts, return_tensors="np", padding=True, **options)
        return {f"tokenizer.{name}": array.astype(np.int64) for name, array in found.items()}

    def begin(self, run, opened):
        """A prompt stands in a template, so ids are given; the shorter text is padded behind its end."""
        run.input(**self.ids())

    def test_ids_that_can_not_be_its_are_refused_in_a_sentence(self, bundle, native):
        opened = native.open(bundle.path, **self.opening)
        run = opened.run(None, None, preset=b"dense", seed=3)
        with pytest.raises(NativeError, match=r"hides ids before some that it shows; pad texts behind their ends"):
            run.input(**self.ids(padding_side="left"))
        with pytest.raises(NativeError, match=r"have 34 ids, the first 34 of which stand before every prompt"):
            run.input(**{name: array[:, :34] for name, array in self.ids().items()})
        with pytest.raises(NativeError, match=r"rewrites prompts before it reads them.*give the ids"):
            run.prompt(self.asked_for)
        run.free()
        opened.close()
