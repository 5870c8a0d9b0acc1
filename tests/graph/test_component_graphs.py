"""Graphs of components: text encoders of any release's files, and what their outputs become."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from accelaes_export.backbones import backbone_of
from accelaes_export.backbones.pipeline_parts import Part
from accelaes_export.backends import backend
from accelaes_export.backends.graphs import GraphRequest
from accelaes_export.contract.components import HIDDEN
from accelaes_export.contract.tensors import TensorSpec
from accelaes_export.graph.components import ComponentGraph, conditioning_graph, encoder_graph, encoder_output


class TestEncodersFiles:
    """Parameters by the names that other releases gave them, and matrices that are read when they are written."""

    @pytest.fixture(scope="class")
    def t5(self):
        from transformers import T5Config, T5EncoderModel

        torch.manual_seed(0)
        wide = T5Config(vocab_size=1100, d_model=1024, d_kv=64, d_ff=64, num_layers=1, num_heads=2)
        return T5EncoderModel(wide).eval()

    def part(self, folder, model):
        model.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        return Part("text_encoder", type(model).__name__, folder, config, (folder / "model.safetensors",))

    def outputs(self, part, tmp_path):
        """Of the ONNX graph, for two texts, one of them padded."""
        import onnxruntime

        read = part.read_weights("fp32")
        graph = encoder_graph("text_encoder", part.kind, part.hollow(read, "fp32"), read, "fp32", length=9, rows=8)
        session = onnxruntime.InferenceSession(str(graph.save_onnx(tmp_path)))
        ids, mask = text()
        found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        return {spec.name: torch.from_numpy(one) for spec, one in zip(graph.outputs, found, strict=True)}

    def test_large_matrices_and_a_shared_embedding_are_read_when_they_are_written(self, t5, tmp_path):
        assert t5.shared.weight.numel() > 2**20, "left out of the traced model"
        found = self.outputs(self.part(tmp_path / "t5", t5), tmp_path)
        self.agree(found, t5)

    @pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection"])
    @pytest.mark.parametrize("prefix", ["text_model.", ""])
    def test_names_with_and_without_the_prefix_of_other_releases_are_the_same(self, tmp_path, kind, prefix):
        import transformers

        torch.manual_seed(0)
        config = transformers.CLIPTextConfig(
            vocab_size=99, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=12, bos_token_id=97, eos_token_id=98, pad_token_id=98, projection_dim=8,
        )  # fmt: skip
        model = getattr(transformers, kind)(config).eval()
        part = self.part(tmp_path / "clip", model)
        stored = load_file(part.files[0])
        bare = {name.removeprefix("text_model."): tensor for name, tensor in stored.items()}
        outside = {name for name in bare if name.startswith("text_projection")}
        renamed = {name if name in outside else prefix + name: tensor for name, tensor in bare.items()}
        save_file(renamed, part.files[0], metadata={"format": "pt"})
        self.agree(self.outputs(part, tmp_path), model)

    def agree(self, found, model):
        ids, mask = text()
        with torch.no_grad():
            wanted = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        for name, tensor in found.items():
            assert torch.allclose(tensor, encoder_output(wanted, name), atol=2e-5), name


def text() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return ids, mask


@pytest.mark.parametrize("batch", [1, 2])
def test_ids_without_a_position_are_left_out_of_the_conditioning(tmp_path, batch):
    """34 before every prompt of Qwen-Image's; the shorter text is padded behind."""
    import onnxruntime

    states = TensorSpec(name=f"{HIDDEN}-1", dtype="fp32", shape=("b", "M", 16))
    mask = TensorSpec(name="attention_mask", dtype="int64", shape=("b", "M"))
    encoder = ComponentGraph("text_encoder", torch.nn.Identity(), (mask, mask), (states,), {"b": 4, "M": 60})
    wanted = (
        TensorSpec(name="encoder_hidden_states", dtype="fp32", shape=("B", "M", 16)),
        TensorSpec(name="encoder_hidden_states_mask", dtype="fp32", shape=("B", "M"), kind="mask", optional=True),
    )
    made = conditioning_graph(
        backbone_of("qwen-image"),
        {},
        SimpleNamespace(inputs=wanted),
        {"text_encoder": encoder},
        {"text_encoder": 60},
        {"text_encoder": 34},
        runs=1,
        last=26,
        rows=4,
    )
    assert [spec.shape for spec in made.outputs] == [("b", "M-34", 16), ("b", "M-34")]
    assert made.outputs[0].sized({"b": batch, "M": 60}) == (batch, 26, 16)
    path = made.save_onnx(tmp_path)
    request = GraphRequest(made.name, made.inputs, made.outputs, made.largest, ("sm89",), tmp_path, onnx=path)
    assert request.least == {"b": 1, "M": 35}, "a text of the template alone has no positions"
    given = torch.randn(batch, 41, 16), torch.ones(batch, 41, dtype=torch.int64)
    given[1][-1, 38:] = 0
    session = onnxruntime.InferenceSession(str(path))
    text, kept = session.run(None, {spec.name: x.numpy() for spec, x in zip(made.inputs, given, strict=True)})
    assert np.array_equal(kept, given[1][:, 34:].float().numpy())
    assert np.array_equal(text, (given[0] * given[1].unsqueeze(-1))[:, 34:].numpy())
    rtx = backend("tensorrt-rtx")
    if rtx.availability().can_build:
        assert rtx.compile_graph(request) == ("conditioning.engine",)
