"""A model whose large matrices are read one by one exports to the graph it exports to when it is whole."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from accelaes_export.backbones.checkpoints import parameter_shapes
from accelaes_export.backbones.weights import hollow_transformer, is_hollow, random_weights, stored_weights
from accelaes_export.graph.export import save_onnx, trace
from accelaes_export.graph.focus_step import example_inputs
from tests.families import FAMILIES
from tests.thorough import thorough_but

onnxruntime = pytest.importorskip("onnxruntime")
TINY = FAMILIES["sd3"]
VARIANT = "dual attention, as in SD3.5"


def stored(tmp_path, model):
    """The model's state in two safetensors files."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    names = sorted(state)
    for k, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in part}, tmp_path / f"{k}.safetensors")
    return [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]


@pytest.mark.parametrize(
    ("kind", "external"),
    thorough_but([("checkpoint", True)], itertools.product(["checkpoint", "random"], [False, True])),
)
def test_a_hollow_model_exports_to_the_same_numbers(kind, external, tmp_path):
    model, config = TINY.model(VARIANT), TINY.full_config(VARIANT)
    if kind == "checkpoint":
        read = stored_weights(stored(tmp_path, model), "fp32")
    else:
        read = random_weights(parameter_shapes(TINY.backbone, config), "fp32", 0)
    asked = []

    def counting(name):
        asked.append(name)
        return read(name.removeprefix("model."))

    hollow = hollow_transformer(TINY.backbone, config, read, "fp32", large=600)
    left_out = {name for name, parameter in hollow.named_parameters() if is_hollow(parameter)}
    assert len(left_out) > 30
    whole = TINY.step(model, VARIANT)
    (tmp_path / "whole").mkdir()
    (tmp_path / "hollow").mkdir()
    paths = [
        save_onnx(trace(whole), whole.contract, tmp_path / "whole"),
        save_onnx(trace(TINY.step(hollow, VARIANT)), whole.contract, tmp_path / "hollow", counting, external=external),
    ]
    assert {name.removeprefix("model.") for name in asked} == left_out
    assert (tmp_path / "hollow" / "focus_step.onnx.data").exists() == external
    graphs = [onnx.load(path).graph for path in paths]
    assert len(graphs[0].node) == len(graphs[1].node), "nothing is left to be done at run time"
    inputs = {name: t.numpy() for name, t in example_inputs(whole.contract, 12).items()}
    outputs = [onnxruntime.InferenceSession(path).run(None, inputs) for path in paths]
    for one, other in zip(*outputs, strict=True):
        assert np.array_equal(one, other)


def test_half_precision_checkpoints_are_read_in_the_builds_dtype(tmp_path):
    files = stored(tmp_path, TINY.model(VARIANT).half())
    read = stored_weights(files, "bf16")
    weight = read("proj_out.weight")
    assert weight is not None
    assert weight.dtype == torch.bfloat16
    assert read("no such tensor") is None


def test_random_weights_are_the_same_in_any_order():
    shapes = parameter_shapes(TINY.backbone, TINY.full_config(VARIANT))
    forwards, backwards = random_weights(shapes, "fp32", 3), random_weights(shapes, "fp32", 3)
    first = {name: forwards(name) for name in shapes}
    second = {name: backwards(name) for name in reversed(list(shapes))}
    assert all(torch.equal(first[name], second[name]) for name in shapes)
