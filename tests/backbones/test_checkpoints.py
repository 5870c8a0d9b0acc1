"""A checkpoint is checked before it is read, and only safetensors are ever read."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import accelaes_export as ax
from accelaes_export.backbones.checkpoints import load_transformer, random_transformer, resolve
from accelaes_export.errors import InputError, MissingComponentError
from tests.tiny_sd3 import SD3, save_tiny_checkpoint, tiny_config

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def checkpoint(original, tmp_path):
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


def edit_config(checkpoint, **changes):
    path = checkpoint / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(checkpoint, change):
    path = checkpoint / "transformer" / WEIGHTS
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("inner", ["", "transformer"])
def test_a_pipelines_folder_and_its_transformers_are_the_same_checkpoint(checkpoint, inner):
    found = resolve(checkpoint / inner, SD3)
    assert found.folder == checkpoint / "transformer"
    assert found.source.weights_sha256 == resolve(checkpoint, SD3).source.weights_sha256


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_loading_gives_the_saved_weights_in_the_asked_dtype(checkpoint, dtype):
    model = load_transformer(resolve(checkpoint, SD3), SD3, dtype)
    expected = random_transformer(SD3, tiny_config(), "fp32", 0).state_dict()
    wanted = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == wanted
        assert torch.equal(tensor, expected[name].to(wanted)), name


class TestOtherKinds:
    """What people have that isn't a diffusers folder of plain weights is named, with what to do, before work begins."""

    def refused(self, place, said):
        with pytest.raises(InputError, match=said):
            resolve(place, SD3)

    @pytest.mark.parametrize(
        ("name", "tensors", "said"),
        [
            ("sd3.safetensors", ["model.diffusion_model.joint_blocks.0.w"], "Stability AI's layout.*from_single_file"),
            ("flux.safetensors", ["double_blocks.0.img_attn.w"], "Black Forest Labs' layout.*save_pretrained"),
            ("comfy.safetensors", ["diffusion_model.x"], "ComfyUI's layout"),
            ("lora.safetensors", ["transformer.blocks.0.to_q.lora_A.weight"], "LoRA weights that weren't merged"),
            ("kohya.safetensors", ["lora_unet_blocks_0.lora_down.weight"], "LoRA weights that weren't merged"),
            ("loha.safetensors", ["blocks_0.hada_w1_a"], "LoRA weights that weren't merged"),
        ],
    )
    def test_single_files(self, tmp_path, name, tensors, said):
        save_file({tensor: torch.zeros(1) for tensor in tensors}, tmp_path / name)
        self.refused(tmp_path / name, said)
        self.refused(tmp_path, said)  # and a folder that has nothing else

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("flux-Q4_K.gguf", "GGUF.*original weights"),
            ("sd3.ckpt", "pickle.*never opened"),
            ("model.pth", "pickle.*never opened"),
            ("notes.txt", "is a file; give a folder"),
            ("broken.safetensors", "is damaged"),
        ],
    )
    def test_files_that_are_no_safetensors(self, tmp_path, name, said):
        (tmp_path / name).write_bytes(b"GGUF")
        self.refused(tmp_path / name, said)

    def test_a_folder_of_a_lora(self, tmp_path):
        save_file({"a": torch.zeros(1)}, tmp_path / "pytorch_lora_weights.safetensors")
        self.refused(tmp_path, "a LoRA, not a model; fuse it")

    @pytest.mark.parametrize(
        ("quantisation", "said"),
        [
            ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes"),
            ({"quant_method": "torchao"}, "torchao"),
            (["odd"], "unknown"),
        ],
    )
    def test_quantised_by_their_config(self, checkpoint, quantisation, said):
        edit_config(checkpoint, quantization_config=quantisation)
        self.refused(checkpoint, f"quantised by {said}.*original weights")

    @pytest.mark.parametrize("name", ["weight.absmax", "weight.quant_map", "SCB", "weight_scale", "scale_weight"])
    def test_quantised_by_their_tensors(self, checkpoint, name):
        edit_tensors(
            checkpoint, lambda tensors: tensors.update({f"transformer_blocks.0.attn.to_q.{name}": torch.ones(1)})
        )
        self.refused(checkpoint, "has quantised weights .*original weights")

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
    def test_quantised_by_their_types(self, checkpoint, dtype):
        edit_tensors(
            checkpoint, lambda tensors: tensors.update({"proj_out.weight": tensors["proj_out.weight"].to(dtype)})
        )
        self.refused(checkpoint, "proj_out.weight is .*original weights")

    def test_an_adapter_that_was_not_merged(self, checkpoint):
        name = "transformer_blocks.0.attn.to_q"
        changes = {f"{name}.lora_A.default.weight": torch.ones(1), f"{name}.base_layer.weight": torch.ones(1)}
        edit_tensors(checkpoint, lambda tensors: tensors.update(changes))
        self.refused(checkpoint, "LoRA weights that weren't merged .*fuse_lora")

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"auto_map": {"AutoModel": "evil.Model"}}, "code of the checkpoint's own"),
            ({"_class_name": "MaskedSD3Transformer2DModel"}, "describes a MaskedSD3Transformer2DModel"),
            ({"_class_name": None}, "model without _class_name"),
            ({"num_layers": 10**9}, "num_layers = 1000000000, which no model has"),
            ({"num_attention_heads": 10**30}, "which no model has"),
            ({"dual_attention_layers": [10**9]}, "which no model has"),
            ({"qk_norm": "rms_norm_of_tomorrow"}, "is no config SD3Transformer2DModel can be made from"),
            ({"attention_head_dim": "wide"}, "is no config SD3Transformer2DModel can be made from"),
            ({"patch_size": 0}, "is no config|has in another shape"),
        ],
    )
    def test_configs(self, checkpoint, changes, said):
        edit_config(checkpoint, **changes)
        self.refused(checkpoint, said)

    @pytest.mark.parametrize("text", ["[]", "3", "null", "{", '{"a": NaN}', "[" * 100_000, '"\\ud800"'])
    def test_configs_that_are_none(self, checkpoint, text):
        (checkpoint / "transformer/config.json").write_text(text)
        self.refused(checkpoint, "config")

    def test_fields_that_diffusers_ignores_are_said(self, checkpoint):
        edit_config(checkpoint, attention_sinks=4)
        assert resolve(checkpoint, SD3).unknown == ("attention_sinks",)

    def test_a_pipe_in_place_of_a_file_is_not_waited_for(self, checkpoint):
        path = checkpoint / "transformer/config.json"
        path.unlink()
        os.mkfifo(path)
        self.refused(checkpoint, "not a regular file")


def save_variant(checkpoint, variant, change=lambda tensor: tensor.half()):
    folder = checkpoint / "transformer"
    tensors = {name: change(tensor) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / f"diffusion_pytorch_model.{variant}.safetensors")


def names(found):
    return [file.name for file in found.files]


def test_weights_are_the_plain_ones_as_diffusers_takes_them_whatever_lies_beside(checkpoint):
    save_variant(checkpoint, "fp16", lambda tensor: (2 * tensor).half())  # what a fine-tune was saved over
    found = resolve(checkpoint, SD3)
    assert names(found) == [WEIGHTS] and found.source.variant is None and found.beside == ("fp16",)
    asked = resolve(checkpoint, SD3, variant="fp16")
    assert names(asked) == ["diffusion_pytorch_model.fp16.safetensors"] and asked.source.variant == "fp16"
    loaded = load_transformer(asked, SD3, "fp32").state_dict()["proj_out.bias"]
    assert torch.equal(loaded, (2 * load_file(checkpoint / "transformer" / WEIGHTS)["proj_out.bias"]).half().float())
    with pytest.raises(InputError, match="no variant 'bf16' of the weights; there are .*fp16"):
        resolve(checkpoint, SD3, variant="bf16")


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_the_only_variant_there_is_is_taken_and_of_several_one_must_be_named(checkpoint, variant):
    save_variant(checkpoint, variant)
    (checkpoint / "transformer" / WEIGHTS).rename(checkpoint / WEIGHTS)
    found = resolve(checkpoint, SD3)
    assert found.source.variant == variant
    load_transformer(found, SD3, "fp16")
    (checkpoint / WEIGHTS).rename(checkpoint / "transformer" / WEIGHTS)
    save_variant(checkpoint, "other")
    (checkpoint / "transformer" / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"in the variants .*; say which with --variant"):
        resolve(checkpoint, SD3)


def test_one_file_saved_over_older_shards_is_refused(checkpoint):
    folder = checkpoint / "transformer"
    load_transformer(resolve(checkpoint, SD3), SD3, "fp32").save_pretrained(folder / "new", max_shard_size="200KB")
    for path in (folder / "new").iterdir():
        path.rename(folder / path.name)
    with pytest.raises(InputError, match="has its weights twice, in .* move the one that isn't meant away"):
        resolve(checkpoint, SD3)


@pytest.mark.parametrize("listed", ["../../x.safetensors", "/etc/passwd", 300 * "a", "a/b.safetensors"])
def test_an_index_lists_files_beside_it_alone(checkpoint, listed):
    folder = checkpoint / "transformer"
    (folder / WEIGHTS).unlink()
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"proj_out.bias": listed}}))
    with pytest.raises(InputError, match="which is no file beside it"):
        resolve(checkpoint, SD3)


@pytest.mark.parametrize(
    "written", ["[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "[" * 100_000, '{"weight_map": {}}', "nonsense"]
)
def test_an_index_of_another_form_is_told(checkpoint, written):
    folder = checkpoint / "transformer"
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(written)
    with pytest.raises(InputError, match=r"is not a weight index|lists no file"):
        resolve(checkpoint, SD3)


class TestTheHub:
    def downloads(self, monkeypatch, checkpoint, tmp_path):
        """A hub's cache that holds `checkpoint` as the commit abc123; returns what was asked for."""
        asked, folder = [], tmp_path / "hub" / "snapshots" / "abc123"
        shutil.copytree(checkpoint, folder)

        def snapshot_download(hub_id, *, revision, allow_patterns):
            asked.append((hub_id, revision))
            return str(folder)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        return asked

    def test_a_revision_may_follow_the_id_and_the_commit_is_recorded(self, monkeypatch, checkpoint, tmp_path):
        asked = self.downloads(monkeypatch, checkpoint, tmp_path)
        found = resolve("some/model@refs/pr/1", SD3)
        assert asked == [("some/model", "refs/pr/1")]
        assert (found.source.kind, found.source.location, found.source.revision) == ("hub", "some/model", "abc123")
        resolve(found.source.location, SD3, revision=found.source.revision)
        assert asked[1] == ("some/model", "abc123")

    @pytest.mark.parametrize("name", ["my models/flux dev", "a/b c", "x/" + "y" * 200, "\u00e9/x"])
    def test_a_mistyped_path_is_told_as_one(self, name):
        with pytest.raises(InputError, match="is no folder here and no hub id either"):
            resolve(name, SD3)


def test_random_weights_beside_a_checkpoint_are_refused(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"Random weights were asked for beside checkpoint .*leave one of them out"):
        ax.build(checkpoint, model="shapes", random_weights=True, output=tmp_path / "bundle")


def test_shards_are_read_by_their_index_and_a_missing_one_is_named(checkpoint):
    folder = checkpoint / "transformer"
    model = load_transformer(resolve(checkpoint, SD3), SD3, "fp32")
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    found = resolve(checkpoint, SD3)
    assert len(found.files) > 1
    again = load_transformer(found, SD3, "fp32").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    found.files[0].unlink()
    with pytest.raises(InputError, match=f"lacks {found.files[0].name}"):
        resolve(checkpoint, SD3)


def test_the_weights_hash_follows_the_weights_and_the_config(checkpoint):
    before = resolve(checkpoint, SD3).source.weights_sha256
    edit_tensors(checkpoint, lambda tensors: tensors["proj_out.bias"].add_(1e-3))
    after = resolve(checkpoint, SD3).source.weights_sha256
    assert before != after
    edit_config(checkpoint, sample_size=8)
    assert resolve(checkpoint, SD3).source.weights_sha256 != after


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("proj_out.bias"), "lacks proj_out.bias"),
        (lambda t: t.update(extra=torch.zeros(3)), "has, beyond what the config asks for, extra"),
        (lambda t: t.update({"proj_out.bias": torch.zeros(3)}), r"another shape proj_out.bias \(\[3\], not \[16\]\)"),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_named(checkpoint, change, said):
    edit_tensors(checkpoint, change)
    with pytest.raises(InputError, match=said):
        resolve(checkpoint, SD3)


def test_a_truncated_file_is_damaged(checkpoint):
    path = checkpoint / "transformer" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="is damaged"):
        resolve(checkpoint, SD3)


def test_another_architecture_is_named_with_the_one_that_fits(checkpoint):
    edit_config(checkpoint, _class_name="FluxTransformer2DModel")
    with pytest.raises(InputError, match="FluxTransformer2DModel.*built from\n? ?SD3Transformer2DModel"):
        resolve(checkpoint, SD3)


def test_a_config_no_model_can_be_made_from_is_refused(checkpoint):
    edit_config(checkpoint, qk_norm="nonsense")
    with pytest.raises(InputError, match=r"config\.json"):
        resolve(checkpoint, SD3)
    (checkpoint / "transformer/config.json").write_text("{")
    with pytest.raises(InputError, match="can't be read as JSON"):
        resolve(checkpoint, SD3)


def test_a_pickle_is_never_opened(checkpoint):
    (checkpoint / "transformer" / WEIGHTS).rename(checkpoint / "transformer/diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match="pickle, which is never opened"):
        resolve(checkpoint, SD3)


def test_a_folder_that_is_not_there_and_a_hub_that_can_not_be_reached(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="was not found"):
        resolve(tmp_path / "nothing", SD3)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MissingComponentError, match="--random-weights"):
        resolve("someone/some-model", SD3)


def test_random_weights_come_from_the_seed_alone_and_keep_activations_in_range():
    config = tiny_config(num_layers=6)
    first, again, other = (random_transformer(SD3, config, "fp32", seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["proj_out.weight"], other["proj_out.weight"])
    model = random_transformer(SD3, config, "fp32", 1)
    with torch.no_grad():
        out = model(torch.randn(1, 4, 16, 16), torch.randn(1, 5, 32), torch.randn(1, 24), torch.tensor([500.0])).sample
    assert 0.05 < out.std() < 50
