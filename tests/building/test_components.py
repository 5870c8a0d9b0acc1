"""Bundles with their pipeline's text encoders, VAE and tokenizers: what is built, what is refused, what it draws."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

import accelaes_export as ax
from accelaes_export import recipes
from accelaes_export.backbones.checkpoints import resolve
from accelaes_export.backbones.pipeline_parts import Part, PipelineParts
from accelaes_export.backbones.sd3 import SD3Backbone
from accelaes_export.backbones.weight_files import DIFFUSERS, TRANSFORMERS
from accelaes_export.backends import backend
from accelaes_export.building.components import component_dtype
from accelaes_export.building.verification import verify
from accelaes_export.bundle.reading import MANIFEST, open_bundle
from accelaes_export.cli import main
from accelaes_export.contract.components import component_files, parse_components
from accelaes_export.errors import BundleError, InputError
from accelaes_export.policies.clip import ClipScorer
from accelaes_export.policies.words import split_words
from accelaes_export.recipes import shipped_folder
from accelaes_export.runtime.generate import load_pipeline
from tests.campaigns.mutations import mutated
from tests.policies.small_tokenizers import t5_tokenizer
from tests.runtime.complete_bundle import CompleteBundle

PROMPT = "an intricate red star on the left, plain blue background"
SHAPES = shipped_folder("shipped:shapes")


@pytest.fixture
def bundle(complete_bundle):
    return complete_bundle


@pytest.fixture(scope="module")
def alone(complete_bundle):
    """The bundle's own pipeline."""
    return quiet(load_pipeline(complete_bundle))


@pytest.fixture(scope="module")
def theirs(complete_bundle):
    """The checkpoint's."""
    return quiet(load_pipeline(complete_bundle, SHAPES))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


class TestShapesAlone(CompleteBundle):
    asked_for = PROMPT
    encoders = ("text_encoder", "text_encoder_2")


@pytest.mark.parametrize("policy", [["accelaes"], ["drift", "--budget", "12"], ["teacache"]])
def test_run_draws_the_checkpoints_picture_without_it(complete_bundle, tmp_path, policy):
    pictures = []
    for name, more in (("own", []), ("theirs", ["--checkpoint", str(SHAPES)])):
        path = tmp_path / f"{name}.png"
        asked = ["run", str(complete_bundle.path), "--prompt", PROMPT, "--policy", *policy, "-o", str(path), *more]
        result = CliRunner().invoke(main, asked)
        assert result.exit_code == 0, result.stderr
        pictures.append(np.asarray(Image.open(path)).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1, "levels of 255"


def test_several_prompts_and_images_are_encoded_a_few_at_a_time(alone, theirs):
    prompts = [f"a {colour} star" for colour in ("red", "blue", "green", "white", "black")] * 4
    rows = alone.text_encoder._record.rows
    assert len(prompts) > 2 * rows
    options = {"prompt_2": None, "prompt_3": None, "num_images_per_prompt": 2, "max_sequence_length": 8}
    found, wanted = (
        pipe.encode_prompt(prompts, **options) for pipe in (with_transformer(alone), with_transformer(theirs))
    )
    for own, reference in zip(found, wanted, strict=True):
        assert torch.allclose(own, reference, atol=1e-5)


def with_transformer(pipe):
    """SD3's pipeline asks its transformer how wide text is where it has no T5."""
    pipe.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=192), dtype=torch.float32)
    return pipe


def test_the_clip_scorer_scores_words_as_with_the_checkpoints_encoder(alone, theirs):
    words = split_words(PROMPT)
    anchors = ("intricate", "glossy detail", "vibrant")
    scores = [ClipScorer(pipe.tokenizer, pipe.text_encoder).score(PROMPT, words, anchors) for pipe in (alone, theirs)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_a_picture_is_made_from_a_picture(complete_bundle):
    from diffusers import StableDiffusion3Img2ImgPipeline

    start = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8))
    pictures = []
    for checkpoint in (None, SHAPES):
        parts = load_pipeline(complete_bundle, checkpoint).components
        pipe = quiet(StableDiffusion3Img2ImgPipeline(**parts))
        ax.accelerate(pipe, complete_bundle, "dense")
        options = {"strength": 0.5, "num_inference_steps": 6, "max_sequence_length": 8, "height": 48, "width": 48}
        made = pipe(PROMPT, image=start, generator=torch.Generator().manual_seed(0), **options).images[0]
        pictures.append(np.asarray(made).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1, "levels of 255"


def test_what_a_bundles_models_can_not_do_is_told_in_one_sentence(alone):
    ids = torch.zeros(1, 33, dtype=torch.int64)
    with pytest.raises(InputError, match=r"was given 33 ids, and the bundle's takes 32: call the pipeline with"):
        alone.text_encoder(ids)
    with pytest.raises(InputError, match=r"hidden states -3 of the text_encoder .*clip_skip.* the bundle has -2"):
        alone.text_encoder(ids[:, :8]).hidden_states[-3]
    with pytest.raises(InputError, match="called with position_ids"):
        alone.text_encoder(ids[:, :8], position_ids=ids)
    with pytest.raises(AttributeError, match="gives text_embeds, last_hidden_state, and no pooler_output"):
        _ = alone.text_encoder(ids[:, :8]).pooler_output
    with pytest.raises(InputError, match=r"VAE was given 4x8x8, and it is for 4x24x24 \(height=48, width=48\)"):
        alone.vae.decode(torch.zeros(1, 4, 8, 8))
    with pytest.raises(AttributeError, match="is a bundle's graph, and has no enable_tiling; load the pipeline from"):
        alone.vae.enable_tiling()
    assert alone.text_encoder(ids[:, :1]).last_hidden_state.shape == (1, 1, 96), "one id is few, but some"


class TestAskedFor:
    def test_names_are_read_in_any_order_and_all_is_all(self):
        assert parse_components("vae, TEXT") == ("text", "vae")
        assert (
            parse_components("all") == ("text", "vae", "tokenizers") == parse_components(["tokenizers", "vae", "text"])
        )
        assert parse_components("none") == ()

    @pytest.mark.parametrize("given", ["txt", "", "text,,vae", "all,vae", "unet"])
    def test_an_unknown_one_is_told_with_those_there_are(self, given, tmp_path):
        asked = ["build", "--model", "shapes", "--components", given, "-o", str(tmp_path / "out")]
        result = CliRunner().invoke(main, asked)
        assert result.exit_code == 2
        assert " is unknown; give some of text, vae, tokenizers, or all, or none" in result.stderr
        assert not (tmp_path / "out").exists()

    def test_random_weights_have_none(self, tmp_path):
        with pytest.raises(
            InputError, match=r"Random weights were asked for, and the components text, which come from"
        ):
            ax.build(model="shapes", random_weights=True, components="text", output=tmp_path / "out")

    def test_a_transformer_by_itself_has_none(self, tmp_path):
        shutil.copytree(SHAPES / "transformer", tmp_path / "transformer")
        with pytest.raises(InputError, match=r"is a transformer by itself, and components come from a whole pipeline"):
            ax.build(tmp_path / "transformer", model="shapes", components="vae", output=tmp_path / "out")

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (lambda f: rewritten(f / "model_index.json", vae=["diffusers", "Other"]), "The vae of .* is a Other"),
            (lambda f: rewritten(f / "model_index.json", vae=[None, None]), "The vae of .* is none, and those"),
            (lambda f: (f / "vae" / "config.json").unlink(), r"vae/config\.json is missing"),
            (lambda f: rewritten(f / "vae" / "config.json", block_out_channels=[16]), "is no config AutoencoderKL"),
            (lambda f: (f / "text_encoder" / "model.safetensors").unlink(), r"has no model\.safetensors"),
            (lambda f: rewritten(f / "text_encoder" / "config.json", vocab_size=9), "token_embedding.* don't belong"),
            (lambda f: rewritten(f / "text_encoder" / "config.json", hidden_size="x"), "is no config CLIPText"),
            (lambda f: shutil.rmtree(f / "tokenizer_2"), "tokenizer_2 has no tokenizer's files"),
            (lambda f: (f / "scheduler" / "scheduler_config.json").write_text("{"), "can't be read as JSON"),
        ],
    )  # fmt: skip
    def test_a_pipeline_that_lacks_something_is_refused_and_nothing_is_written(self, tmp_path, spoil, said):
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(SHAPES, checkpoint)
        spoil(checkpoint)
        with pytest.raises(ax.AccelAesError, match=said):
            ax.build(
                checkpoint, model="shapes", components="all", presets="none", output=tmp_path / "out", verify=False
            )
        assert not (tmp_path / "out").exists()


def test_components_are_of_the_transformers_variant_where_they_have_it(tmp_path):
    """As diffusers takes them; a component that has the variant alone is loaded by it."""
    shutil.copytree(SHAPES, tmp_path / "checkpoint")
    stems = {"transformer": DIFFUSERS, "vae": DIFFUSERS, "text_encoder": TRANSFORMERS, "text_encoder_2": TRANSFORMERS}
    for name, stem in stems.items():
        plain = tmp_path / "checkpoint" / name / f"{stem}.safetensors"
        if name != "text_encoder":
            save_file({key: tensor.half() for key, tensor in load_file(plain).items()}, plain.with_suffix(".half"))
            plain.with_suffix(".half").rename(plain.with_name(f"{stem}.fp16.safetensors"))
        if name == "text_encoder_2":
            plain.unlink()
    found = {}
    for variant in (None, "fp16"):
        checkpoint = resolve(tmp_path / "checkpoint", SD3Backbone(), variant=variant)
        parts = PipelineParts.of(checkpoint, ("text", "vae"))
        found[variant] = {part.name: part.variant for part in parts.described}
        for part in parts.described:
            wanted = load_file(part.files[0])
            made = part.load("fp32").state_dict()
            assert any(torch.equal(made[key], tensor.float()) for key, tensor in wanted.items() if key in made)
            assert part.files[0].name.count("fp16") == (part.variant == "fp16")
    assert found[None] == {"text_encoder": "", "text_encoder_2": "fp16", "vae": ""}
    assert found["fp16"] == {"text_encoder": "", "text_encoder_2": "fp16", "vae": "fp16"}


def hub_cache(folder: Path, name: str, checkpoint: Path) -> None:
    """A hub repository as huggingface_hub keeps it: a commit's folder of links to blobs, and a branch."""
    repository = folder / f"models--{name.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / ("0" * 40), repository / "blobs"
    blobs.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for k, path in enumerate(sorted(path for path in checkpoint.rglob("*") if path.is_file())):
        link = snapshot / path.relative_to(checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blobs / f"{k:040x}")
        link.symlink_to(os.path.relpath(blobs / f"{k:040x}", link.parent))


def test_components_of_a_hub_id_are_those_of_the_pipeline_in_the_cache(complete_bundle, tmp_path, monkeypatch):
    hub_cache(tmp_path / "hub", "somebody/shapes", SHAPES)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    options = {"components": "all", "presets": "none", "verify": False}
    bundle = ax.build("somebody/shapes", model="shapes", output=tmp_path / "bundle", **options)
    assert (bundle.manifest.source.kind, bundle.manifest.source.location) == ("hub", "somebody/shapes")
    assert bundle.manifest.source.revision == "0" * 40 and bundle.manifest.complete
    own, shipped = (one.manifest.components for one in (bundle, complete_bundle))
    assert {name: encoder.weights_sha256 for name, encoder in own.encoders.items()} == {
        name: encoder.weights_sha256 for name, encoder in shipped.encoders.items()
    }
    assert all(not (bundle.path / file).is_symlink() for file in component_files(own, bundle.manifest.geometry.vae))
    some = ax.build(
        "somebody/shapes", model="shapes", output=tmp_path / "some", **options | {"components": "tokenizers"}
    )
    assert type(load_pipeline(some).vae).__name__ == "AutoencoderKL", "the rest is the hub's"
    shutil.rmtree(tmp_path / "hub")
    assert load_pipeline(bundle).vae is not None, "a complete bundle asks no hub"
    with pytest.raises(
        ax.MissingComponentError, match="pipeline 'somebody/shapes' can't be loaded.* with --checkpoint"
    ):
        load_pipeline(some)


def test_run_reads_what_a_bundle_lacks_of_the_variant_it_was_built_of(tmp_path):
    """A checkpoint that has no other files: without their variant diffusers wouldn't find them."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(SHAPES, checkpoint)
    for path in checkpoint.glob("*/*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    bundle = ax.build(checkpoint, model="shapes", presets="none", output=tmp_path / "bundle", verify=False)
    assert bundle.manifest.source.variant == "fp16"
    pipe = quiet(load_pipeline(bundle))
    wanted = load_file(checkpoint / "vae" / f"{DIFFUSERS}.fp16.safetensors")
    assert torch.equal(pipe.vae.state_dict()["decoder.conv_in.weight"], wanted["decoder.conv_in.weight"])
    shutil.rmtree(checkpoint)
    pipe = quiet(load_pipeline(bundle, SHAPES))  # another place of the same checkpoint, with plain files
    assert torch.equal(pipe.vae.state_dict()["decoder.conv_in.weight"], wanted["decoder.conv_in.weight"])


def rewritten(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestRecorded:
    def test_a_number_changed_by_hand_is_noticed_wherever_it_is(self, complete_bundle, tmp_path):
        folder = tmp_path / "damaged"
        shutil.copytree(complete_bundle.path, folder)
        document = json.loads((folder / MANIFEST).read_text())
        refused = 0
        for seed in range(150):
            changed = copy.deepcopy(document)
            owner = changed if seed % 3 else changed["geometries"][0]
            place = "components" if seed % 3 else "vae"
            owner[place], touched = mutated(owner[place], random.Random(seed))
            if changed == document:
                continue
            (folder / MANIFEST).write_text(json.dumps(changed))
            try:
                opened = open_bundle(folder, check_hashes=False).manifest
            except BundleError:
                refused += 1
            else:
                assert opened == complete_bundle.manifest, f"{touched} was changed, and nobody noticed"
        assert refused > 100

    def test_another_checkpoints_text_encoder_is_no_reference(self, complete_bundle, tmp_path):
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(SHAPES, checkpoint)
        shutil.copy(SHAPES / "text_encoder_2" / "model.safetensors", checkpoint / "text_encoder" / "model.safetensors")
        if (SHAPES / "text_encoder" / "model.safetensors").read_bytes() == (
            SHAPES / "text_encoder_2" / "model.safetensors"
        ).read_bytes():
            rewritten(checkpoint / "text_encoder" / "config.json", layer_norm_eps=1e-3)
        with pytest.raises(InputError, match="text_encoder has other weights than this bundle's was made of"):
            verify(complete_bundle, checkpoint)

    def test_inspect_lists_them_and_says_whether_a_checkpoint_is_needed(self, complete_bundle, shapes_bundle):
        shown = CliRunner().invoke(main, ["inspect", str(complete_bundle.path)]).stdout
        for said in ("text_encoder_2", "tokenizer_2", "scheduler", "complete: no checkpoint is needed"):
            assert said in shown
        assert "Components" not in CliRunner().invoke(main, ["inspect", str(shapes_bundle.path)]).stdout


def test_a_pipeline_with_t5_has_its_states_behind_those_of_both_clips(tmp_path):
    """The shipped checkpoint has none; as published, SD3 has three text encoders."""
    from transformers import T5Config, T5EncoderModel

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(SHAPES, checkpoint)
    tokenizer = t5_tokenizer(("\u2581intricate", "\u2581red", "\u2581star"))
    tokenizer.save_pretrained(checkpoint / "tokenizer_3")
    torch.manual_seed(0)
    t5 = T5Config(vocab_size=len(tokenizer), d_model=192, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(t5).save_pretrained(checkpoint / "text_encoder_3")
    added = {"text_encoder_3": "T5EncoderModel", "tokenizer_3": type(tokenizer).__name__}
    rewritten(checkpoint / "model_index.json", **{name: ["transformers", kind] for name, kind in added.items()})
    options = {"components": "text,tokenizers", "presets": "none", "buckets": "1.0"}
    recipe = recipes.load("shapes").model_copy(update={"policy": recipes.PolicyChoice(name="dense")})
    bundle = ax.build(checkpoint, model=recipe, output=tmp_path / "bundle", **options)
    compared = {result.name: result.passed for result in verify(bundle).components}
    assert compared == {
        "text_encoder": True, "text_encoder_2": True, "text_encoder_3": True, "conditioning": True, "a picture": True,
    }  # fmt: skip
    assert bundle.manifest.components.lacking() == ("vae",)
    assert [spec.shape for spec in bundle.manifest.components.conditioning.outputs] == [("b", 40, 192), ("b", 192)]


@pytest.mark.parametrize(
    ("name", "kind", "upcast", "engine", "where", "target", "wanted"),
    [
        ("text_encoder", "CLIPTextModel", None, "fp16", "aoti", "sm90", "fp16"),
        ("text_encoder_3", "T5EncoderModel", None, "fp16", "aoti", "sm90", "bf16"),
        ("text_encoder_3", "T5EncoderModel", None, "fp16", "aoti", "sm75", "fp32"),
        ("text_encoder_3", "T5EncoderModel", None, "bf16", "aoti", "sm90", "bf16"),
        ("text_encoder_3", "T5EncoderModel", None, "fp16", "onnxruntime", "cpu", "fp32"),
        ("text_encoder_3", "T5EncoderModel", None, "fp16", "onnxruntime", "cuda", "bf16"),
        ("text_encoder", "GemmaModel", None, "fp16", "onnxruntime", "cuda", "bf16"),
        ("vae", "AutoencoderKL", True, "fp16", "onnxruntime", "cuda", "fp32"),
        ("vae", "AutoencoderKL", False, "fp16", "onnxruntime", "cuda", "fp16"),
        ("vae", "AutoencoderKL", True, "bf16", "onnxruntime", "cuda", "bf16"),
        ("vae", "AutoencoderKL", False, "fp16", "onnxruntime", "cpu", "fp32"),
    ],
)
def test_a_component_computes_in_a_dtype_it_does_not_overflow(
    monkeypatch, name, kind, upcast, engine, where, target, wanted
):
    own = backend(where)
    monkeypatch.setattr("accelaes_export.backends.aoti._lacking", lambda _: ("", ""))  # a GPU, and its toolchain
    monkeypatch.setattr("accelaes_export.backends.aoti.resolve", lambda targets: targets[0])
    job = SimpleNamespace(
        inputs=SimpleNamespace(backend=own, targets=(target,)),
        graph=SimpleNamespace(contract=SimpleNamespace(dtype=engine)),
    )
    config = {} if upcast is None else {"force_upcast": upcast}
    assert component_dtype(Part(name, kind, Path(), config, ()), job) == wanted


def test_a_recipe_may_ask_for_them():
    assert recipes.load("shapes").override(components="all").components == ("text", "vae", "tokenizers")
