"""The exporter's own graph through the backends: SD3.5's blocks, dual attention included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from accelaes_export.backends.base import CompileRequest
from accelaes_export.backends.onnxruntime import OnnxRuntimeBackend
from accelaes_export.backends.tensorrt import TensorRTBackend
from accelaes_export.backends.tensorrt.flavour import RTX
from accelaes_export.contract.tensors import GraphContract
from accelaes_export.graph.export import save_onnx, trace
from accelaes_export.graph.focus_step import FocusStep, example_inputs
from tests.tiny_sd3 import tiny_config, tiny_step

Exported = tuple[FocusStep, GraphContract, Path]


def silent(phase: str, done: float | None) -> None:
    """A progress callback that shows nothing."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Heads of 32, because TensorRT-RTX fuses attention from there on; fp32; any text length."""
    config = tiny_config(qk_norm="rms_norm", dual_attention_layers=[0], attention_head_dim=32, num_attention_heads=2)
    step = tiny_step(config, [0, 2]).eval()
    table = step.contract
    return step, table, save_onnx(trace(step), table, tmp_path_factory.mktemp("exported"))


def test_onnxruntime_sessions_equal_the_eager_focus_step_in_every_bucket(exported: Exported, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime isn't installed")
    step, table, path = exported
    engine = OnnxRuntimeBackend(threads=1)
    compiled = engine.compile(CompileRequest(path, table, ("cpu",), tmp_path), silent)
    session = engine.open(tmp_path, table, compiled.files)
    for n in table.buckets:
        for B in (1, 2):
            inputs = example_inputs(table, n, B=B, M=9 + B)
            with torch.no_grad():
                wanted = step.run(inputs)
            outputs = {name: torch.full(tensor.shape, torch.nan) for name, tensor in wanted.items()}
            session.run(inputs, outputs)
            for name, tensor in wanted.items():
                torch.testing.assert_close(outputs[name], tensor, atol=1e-4, rtol=1e-3)


def test_tensorrt_rtx_builds_every_bucket_into_one_engine(exported: Exported, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx isn't installed")
    _, table, path = exported
    window = table.model_copy(update={"dynamic_text": False})
    compiled = TensorRTBackend(RTX).compile(CompileRequest(path, window, ("sm86", "sm120"), tmp_path), silent)
    assert (tmp_path / compiled.files[0]).stat().st_size > 100_000
