"""A Lumina pipeline with a bundle in it: rotation tables that change in the middle, masked text, guided channels."""

from __future__ import annotations

import shutil

import onnx
import pytest
import torch

import accelaes_export as ax
from accelaes_export import recipes
from accelaes_export.backends.onnxruntime import OnnxRuntimeBackend
from accelaes_export.policies import AccelAes, Dense, SpatialGuidance, StepCache, StepKind, named
from accelaes_export.runtime.generate import generate, load_pipeline
from tests.runtime.any_pipeline import AnyPipeline, Case
from tests.runtime.complete_bundle import CompleteBundle
from tests.trajectories import difference, sampled

PROMPT = "an intricate red star on the left"
OTHER = "a glossy green circle at the top, plain background"
SIZE = {"height": 96, "width": 64}  # the default is 64 x 64, so that positions are scaled
STEPS = 12
WATERSHED = 0.6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole pipeline of small random parts, as diffusers saves it."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel, LuminaPipeline
    from transformers import GemmaConfig, GemmaModel, GemmaTokenizer

    torch.manual_seed(0)
    symbols = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *map(chr, range(33, 127))]
    tokenizer = GemmaTokenizer(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[], add_bos_token=True)
    text_encoder = GemmaModel(
        GemmaConfig(
            vocab_size=len(symbols),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=2,
    )
    transformer = LuminaNextDiT2DModel(
        sample_size=8,
        hidden_size=64,
        num_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        cross_attention_dim=32,
    )
    for name, parameter in transformer.named_parameters():
        if name.endswith("gate") or name == "pad_token":  # the gates of the text are 0 before training
            torch.nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("lumina") / "pipeline"
    pipe = LuminaPipeline(transformer, FlowMatchEulerDiscreteScheduler(), vae, text_encoder, tokenizer)
    pipe.save_pretrained(folder)
    return folder


def tiny_build(checkpoint, output, **options):
    return ax.build(
        checkpoint, model="lumina-next", output=output, dtype="fp32", affinity_every=1, resolution=(96, 64), **options
    )


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    return tiny_build(checkpoint, tmp_path_factory.mktemp("bundles") / "lumina", components="all")


@pytest.fixture
def pipe(checkpoint):
    from diffusers import LuminaPipeline

    loaded = LuminaPipeline.from_pretrained(checkpoint)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def sample(pipe, prompt=PROMPT, seed=0, **options):
    """The latents after every step."""
    defaults = SIZE | {"num_inference_steps": STEPS, "guidance_scale": 4.0, "scaling_watershed": WATERSHED}
    return sampled(pipe, prompt, seed=seed, **defaults | options)


def watershed_step(pipe):
    """The first step whose positions are scaled by frequency."""
    pipe.scheduler.set_timesteps(STEPS)
    return next(i for i, t in enumerate(pipe.scheduler.timesteps) if 1 - t / 1000 >= WATERSHED)


def kinds(pipe):
    """D, s or . for every step that was carried out."""
    letters = {StepKind.DENSE: "D", StepKind.SPARSE: "s", StepKind.SKIP: "."}
    return "".join(letters[record.kind] for record in pipe.transformer.report().steps)


def at_one_scale(pipe, **options):
    """The latents of a call in which one table of positions serves all steps."""
    return sample(pipe, **{"scaling_watershed": 2.0} | options)


class TestAsAnyPipeline(AnyPipeline):
    case = Case(
        sample=at_one_scale,
        calls={
            "guided": {},
            "without guidance": {"guidance_scale": 1.0},
            "two pictures": {"num_images_per_prompt": 2, "generator": None, "latents": torch.ones(2, 4, 12, 8)},
            "across the watershed": {"scaling_watershed": WATERSHED},
        },
        prompts=(PROMPT, OTHER),
        words=(PROMPT, OTHER),
        tolerance=1e-3,
        plans=((StepCache(), "DDDDD.D.D.DD"), (AccelAes(refresh_every=0), "DDDDDD.b.b.b")),
        n=12,
    )


class TestAlone(CompleteBundle):
    asked_for = PROMPT
    encoders = ("text_encoder",)


def test_the_watershed_lies_within_the_run(pipe):
    assert 0 < watershed_step(pipe) < STEPS - 1


def test_keys_rotated_by_another_table_make_the_watershed_a_dense_step(pipe, bundle):
    policy = AccelAes(mask_step=2, warmup=2, refresh_every=0)
    first = watershed_step(pipe)
    plan = str(policy.plan(STEPS, (0.25, 0.5, 0.75)))
    ax.accelerate(pipe, bundle, policy=policy)
    sample(pipe, scaling_watershed=2.0)  # one table throughout
    plain = kinds(pipe)
    assert plain == plan.replace("b", "s")
    assert plain[first] != "D"
    sample(pipe)
    assert kinds(pipe) == plain[:first] + "D" + plain[first + 1 :]


def test_words_weigh_at_their_own_tokens_which_gemma_pads_from_the_left(pipe, bundle, monkeypatch):
    session, seen = bundle.session(), []
    run = session.run
    monkeypatch.setattr(
        session, "run", lambda inputs, *rest: (seen.append(inputs["token_weights"].clone()), run(inputs, *rest))
    )
    ax.accelerate(pipe, bundle, policy=AccelAes(mask_step=2, warmup=2))
    sample(pipe, f"  {PROMPT.title()}")  # the pipeline writes it small and strips it
    (words,) = pipe.transformer.report().words
    assert [word for word, weight in words.pairs() if weight > 0] == ["intricate", "red", "star"]
    conditional, unconditional = seen[0]
    assert not unconditional.any(), "the conditional row comes first"
    M = -(-(len(PROMPT) + 1) // 8) * 8  # a begin token, a token a letter, to a multiple of 8
    marked = "".join(c if w > 0 else "." for c, w in zip(PROMPT.rjust(M), conditional.tolist(), strict=True))
    assert marked.strip(".").replace(".", " ").split() == ["intricate", "red", "star"]


def test_guidance_by_region_is_the_recipes_default_and_leaves_the_fourth_channel_alone(pipe, bundle):
    defaults = bundle.manifest.defaults
    assert bundle.manifest.spatial_cfg
    policy = named(defaults.policy, **defaults.policy_options)
    assert policy.spatial_guidance == SpatialGuidance(7.0, 1.0)
    options = {"mask_step": 2, "warmup": 2, "interval": 1, "refresh_every": 1}
    latents = {}
    for name, cfg in {"plain": None, "equal": SpatialGuidance(4.0, 4.0), "region": policy.spatial_guidance}.items():
        ax.accelerate(pipe, bundle, policy=AccelAes(spatial_cfg=cfg, **options))
        latents[name] = sample(pipe)
    assert difference(latents["equal"], latents["plain"]) <= 1e-4
    before, after = latents["plain"][3], latents["region"][3]  # the first step with a mask, from the same latents
    assert torch.allclose(before[:, 3], after[:, 3], atol=1e-5)
    assert not torch.allclose(before[:, :3], after[:, :3], atol=1e-3)


def test_a_pipeline_without_a_transformer_of_its_own_is_as_good(bundle, pipe):
    lean = load_pipeline(bundle)
    result = generate(bundle, PROMPT, pipe=lean, policy=Dense(), steps=3)
    assert result.image.size == (64, 96)
    expected = pipe(
        PROMPT, negative_prompt=None, num_inference_steps=3, guidance_scale=4.0, generator=torch.manual_seed(0), **SIZE
    )
    found = torch.tensor(list(result.image.convert("RGB").tobytes()))
    assert (found - torch.tensor(list(expected.images[0].convert("RGB").tobytes()))).abs().max() <= 1


def test_an_engine_with_a_fixed_window_takes_shorter_texts_and_refuses_longer_ones(
    checkpoint, pipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(OnnxRuntimeBackend, "dynamic_text", False)
    recipe = recipes.load("lumina-next")
    window = recipe.override(text=({"tokenizers": ("tokenizer",), "length": 48},))
    monkeypatch.setattr(recipes, "load", lambda name: window)
    fixed = tiny_build(checkpoint, tmp_path / "bundle", buckets="0.5")
    expected = sample(pipe)
    ax.accelerate(pipe, fixed, policy=Dense())
    assert difference(sample(pipe), expected) <= 1e-4
    ax.accelerate(pipe, fixed, policy=AccelAes(mask_step=2, warmup=2))
    sample(pipe)
    with pytest.raises(ax.InputError, match="takes 48 text tokens and got 56"):
        sample(pipe, OTHER)


def test_texts_are_padded_to_few_lengths_where_asked_and_nothing_else_changes(checkpoint, pipe, tmp_path):
    padding = tiny_build(checkpoint, tmp_path / "bundle", buckets="0.5", text_multiple=32)
    expected, longer = sample(pipe), sample(pipe, OTHER)
    ax.accelerate(pipe, padding, policy=Dense())
    lengths, run = [], padding.session().run
    padding.session().run = lambda inputs, *rest: (lengths.append(inputs["encoder_mask"].shape[1]), run(inputs, *rest))
    assert difference(sample(pipe), expected) <= 1e-4
    assert difference(sample(pipe, OTHER), longer) <= 1e-4
    assert set(lengths) == {64}, "texts of 40 and 56 tokens are of one length"


def test_wrong_uses_are_told_in_one_sentence(pipe, bundle):
    own = pipe.transformer
    ax.accelerate(pipe, bundle, policy=Dense())
    with pytest.raises(ax.InputError, match="height=96, width=64"):
        sample(pipe, height=64)
    with pytest.raises(ax.InputError, match="base_sequence_length = None, but this bundle was built for 16"):
        sample(pipe, proportional_attn=False)
    with pytest.raises(ax.InputError, match="encoder_mask, rope_cos, rope_sin"):
        pipe.transformer(
            torch.zeros(2, 4, 12, 8),
            torch.zeros(2),
            torch.zeros(2, 8, 32),
            cross_attention_kwargs={"base_sequence_length": 16},
        )
    ax.restore(pipe)
    pipe.transformer = type(own).from_config(dict(own.config) | {"num_layers": 2})
    with pytest.raises(ax.InputError, match="num_layers"):
        ax.accelerate(pipe, bundle)


def test_the_graph_has_no_complex_numbers_no_float64_and_no_boolean_masks(bundle):
    model = onnx.load(bundle.path / "focus_step.onnx", load_external_data=False)
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))]
    casts = [a.i for node in model.graph.node if node.op_type == "Cast" for a in node.attribute if a.name == "to"]
    made = {*(tensor.data_type for tensor in tensors), *casts}
    assert made <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32}


def test_what_cant_be_built_is_told_before_anything_is_written(checkpoint, tmp_path):
    output = tmp_path / "bundle"
    with pytest.raises(ax.InputError, match="multiple of 16"):
        ax.build(checkpoint, model="lumina-next", output=output, dtype="fp32", resolution=(100, 64))
    with pytest.raises(ax.InputError, match="385 positions, but this model's position table has 384"):
        ax.build(checkpoint, model="lumina-next", output=output, dtype="fp32", resolution=(64, 6160))
    with pytest.raises(ax.InputError, match=r"LuminaNextDiT2DModel.*choose the --model"):
        ax.build(checkpoint, model="sd3", output=output)
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken/transformer/config.json").write_text('{"_class_name": "SD3Transformer2DModel"}')
    with pytest.raises(ax.InputError, match="describes a SD3Transformer2DModel"):
        ax.build(tmp_path / "broken", model="lumina-next", output=output, dtype="fp32")
    assert not output.exists()
