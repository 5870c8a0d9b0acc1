"""A pipeline runs on its own weights, or says whose; checkpoints with numbers no engine can hold aren't built."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

import accelaes_export as ax
from accelaes_export.contract.fingerprint import differing, fingerprint, read_fingerprint
from accelaes_export.policies import Dense
from accelaes_export.recipes import shipped_folder
from accelaes_export.runtime.weights import which_weights
from tests.shallow_shapes import save_shallow_shapes
from tests.shapes_pipeline import load_shapes
from tests.tiny_sd3 import save_tiny_checkpoint, tiny_config


@pytest.fixture
def pipe():
    return load_shapes()


def matrix(pipe):
    return pipe.transformer.transformer_blocks[1].attn.to_q.weight


def refused(pipe, bundle, **options):
    with pytest.raises(ax.InputError, match="other weights than bundle .*build a bundle from it") as caught:
        ax.accelerate(pipe, bundle, Dense(), **options)
    return str(caught.value)


def test_a_fused_lora_or_a_fine_tune_is_refused_and_the_pipeline_left_as_it_was(pipe, shapes_bundle):
    own = pipe.transformer
    with torch.no_grad():
        matrix(pipe).add_(1e-4 * torch.randn(matrix(pipe).shape[0], 1) @ torch.randn(1, matrix(pipe).shape[1]))
    message = refused(pipe, shapes_bundle)
    assert "1 of " in message and "transformer_blocks.1.attn.to_q.weight" in message
    assert pipe.transformer is own and "encode_prompt" not in vars(pipe)
    ax.accelerate(pipe, shapes_bundle, Dense(), weights="bundle")
    assert "as asked for" in pipe.transformer.served[0].weights


def test_one_changed_number_is_found_where_all_are_compared(pipe, shapes_bundle):
    with torch.no_grad():
        matrix(pipe)[3, 5] += 1.0
    refused(pipe, shapes_bundle, weights="all")


@pytest.mark.parametrize("weights", ["sample", "all"])
def test_a_pipelines_own_weights_run_and_the_report_says_so(pipe, shapes_bundle, weights):
    ax.accelerate(pipe, shapes_bundle, Dense(), weights=weights)
    pipe("a red star", num_inference_steps=2, max_sequence_length=8, output_type="latent")
    assert pipe.transformer.report().weights.startswith("the pipeline's own")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_same_weights_are_the_same_in_any_two_types_and_others_are_others(kind, dtype):
    exact = torch.nn.Linear(64, 64)
    with torch.no_grad():
        exact.weight.mul_(torch.logspace(-6, 3, 64)[:, None])  # also where fp16 has few digits left
    types = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    state = {name: value.detach().clone() for name, value in exact.state_dict().items()}
    made = fingerprint(state, lambda name: state[name].to(types[dtype]), state.get, dtype)
    assert differing(exact.to(kind), made) == []
    with torch.no_grad():
        exact.weight.mul_(1.05)
    assert differing(exact, made) == ["weight"]


def test_what_can_not_be_compared_is_said(pipe, shapes_bundle, caplog, tmp_path):
    with caplog.at_level(logging.WARNING, "accelaes_export"):
        offloaded = load_shapes()
        offloaded.transformer.to("meta")
        assert "can't be compared" in which_weights(offloaded, shapes_bundle, "sample")
        pipe.transformer = None
        assert "as the rest of the pipeline" in which_weights(pipe, shapes_bundle, "sample")
        pipe.register_to_config(_name_or_path=str(tmp_path))
        assert f"was loaded from {tmp_path}" in which_weights(pipe, shapes_bundle, "sample")
    assert len(caplog.records) == 2
    with pytest.raises(ax.InputError, match="weights is 'mine'; allowed are 'sample', 'all', 'bundle'"):
        which_weights(pipe, shapes_bundle, "mine")


def test_a_bundle_records_every_parameter_of_its_checkpoint(shapes_bundle):
    stored = load_file(shipped_folder("shipped:shapes") / "transformer/diffusion_pytorch_model.safetensors")
    made = read_fingerprint(shapes_bundle.path)
    assert made is not None and set(made.tensors) == {name for name in stored if not name.endswith("pos_embed")}


class TestNumbersNoEngineCanHold:
    def checkpoint(self, folder, value):
        save_tiny_checkpoint(folder, tiny_config(num_layers=1))
        file = next(folder.rglob("diffusion_pytorch_model*.safetensors"))
        tensors = load_file(file)
        tensors["transformer_blocks.0.attn.to_q.weight"][2, 3] = value
        save_file(tensors, file, metadata={"format": "pt"})
        return folder

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_are_named_before_the_build_where_they_are_none(self, tmp_path, value):
        checkpoint = self.checkpoint(tmp_path / "checkpoint", value)
        with pytest.raises(
            ax.InputError, match=r"transformer_blocks.0.attn.to_q.weight has 1 numbers that are infinite or not a"
        ):
            ax.build(checkpoint, model="shapes", output=tmp_path / "bundle", text_multiple=None)
        assert not (tmp_path / "bundle").exists()

    def test_are_named_with_the_types_that_can(self, tmp_path):
        checkpoint = self.checkpoint(tmp_path / "checkpoint", 7e4)
        with pytest.raises(ax.InputError, match=r"numbers up to 7e\+04, which fp16 can't hold .*--dtype bf16 or fp32"):
            ax.build(checkpoint, model="shapes", dtype="fp16", output=tmp_path / "bundle")
        assert not (tmp_path / "bundle").exists()


def test_an_engine_of_half_precision_serves_a_pipeline_that_was_loaded_plainly(tmp_path):
    folder = save_shallow_shapes(tmp_path / "shapes")
    bundle = ax.build(folder, model="shapes", dtype="fp16", buckets="0.5", presets="none", output=tmp_path / "half")
    assert any("a GPU would overflow can't be seen" in note for note in bundle.manifest.backend.notes)
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    ax.accelerate(pipe, bundle)
    assert pipe.transformer.dtype == pipe.dtype == torch.float32
    image = pipe("a glossy blue ring", num_inference_steps=9, output_type="pt").images
    assert image.dtype == torch.float32 and torch.isfinite(image).all()
