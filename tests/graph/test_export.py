"""One ONNX file serves every bucket, batch and text length, and carries attention as the accelaes function."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelaes_export.errors import BuildError
from accelaes_export.graph.export import save_onnx, trace
from accelaes_export.graph.focus_step import FocusStep, example_inputs
from tests.tiny_sd3 import SD3, tiny_config, tiny_contract, tiny_step, tiny_transformer

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(
    scope="module", params=[{}, {"qk_norm": "rms_norm", "dual_attention_layers": [0]}], ids=["sd3", "sd3.5"]
)
def exported(request, tmp_path_factory):
    config = tiny_config(**request.param)
    step = tiny_step(config, [0, 1]).eval()
    contract = step.contract
    path = save_onnx(trace(step), contract, tmp_path_factory.mktemp("onnx"))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return contract, step, path, session


@given(n=st.integers(1, 48), B=st.integers(1, 2), M=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_onnx_runtime_agrees_with_eager_for_every_focus_count_batch_and_text(exported, n, B, M, seed):
    contract, step, _, session = exported
    inputs = example_inputs(contract, n, B=B, M=M, seed=seed)
    with torch.no_grad():
        expected = step.run(inputs)
    found = session.run(list(expected), {name: tensor.numpy() for name, tensor in inputs.items()})
    for (name, wanted), array in zip(expected.items(), found, strict=True):
        scale = max(1.0, wanted.abs().max().item())
        assert np.abs(array - wanted.numpy()).max() <= 1e-4 * scale, name


def test_the_file_is_valid_and_named_by_the_contract(exported):
    contract, _, path, _ = exported
    model = onnx.load(path)
    onnx.checker.check_model(model)
    for values, specs in ((model.graph.input, contract.inputs), (model.graph.output, contract.outputs)):
        assert [value.name for value in values] == [spec.name for spec in specs]
        for value, spec in zip(values, specs, strict=True):
            dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            assert dims == list(spec.shape)


def test_every_attention_is_one_function_call_with_a_standard_body(exported):
    contract, _, path, _ = exported
    model = onnx.load(path)
    calls = [node for node in model.graph.node if node.op_type == "SparseQueryAttention"]
    assert len(calls) == len(contract.cache) // 2
    assert {node.domain for node in calls} == {"accelaes"}
    (function,) = model.functions
    assert (function.domain, function.name) == ("accelaes", "SparseQueryAttention")
    assert {node.domain for node in function.node} == {""}, "the body is made of standard operators alone"


def test_an_input_the_graph_does_not_read_is_an_error():
    config = tiny_config()
    contract, latents = tiny_contract(config)

    class Deaf(FocusStep):
        def forward(self, inputs):
            at = [spec.name for spec in self.contract.inputs].index("pooled_projections")
            constant = torch.ones(inputs[0].shape[0], inputs[at].shape[1])
            return super().forward((*inputs[:at], constant, *inputs[at + 1 :]))

    with pytest.raises(BuildError, match="the graph doesn't read"):
        trace(Deaf(tiny_transformer(config), SD3, contract, latents, [0]))
