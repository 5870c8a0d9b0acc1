"""ONNX Runtime tells where a focus step's time goes, call by call, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from accelaes_export.backends.base import CompileRequest
from accelaes_export.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeSession
from accelaes_export.contract.example_inputs import example_inputs
from tests.backends import tiny_focus_step as tiny

pytest.importorskip("onnxruntime", reason="onnxruntime isn't installed")


@pytest.fixture
def session(tmp_path: Path) -> OnnxRuntimeSession:
    source, bundle = tmp_path / "source", tmp_path / "bundle"
    source.mkdir()
    bundle.mkdir()
    table = tiny.contract(batch=1)
    engine = OnnxRuntimeBackend(threads=1)
    files = engine.compile(CompileRequest(tiny.save(source, table), table, ("cpu",), bundle), lambda *_: None).files
    return engine.open(bundle, table, files)


def test_kernels_are_counted_per_call_and_outputs_written(
    session: OnnxRuntimeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    n = session.contract.buckets[0]
    inputs = example_inputs(session.contract, n)
    outputs = tiny.empty_outputs(session.contract, n, inputs["focus_index"].shape[0], inputs["token_weights"].shape[1])
    session.run(inputs, outputs)
    expected = {name: tensor.clone() for name, tensor in outputs.items()}
    for tensor in outputs.values():
        tensor.zero_()
    two, four = (session.kernel_times(inputs, outputs, calls) for calls in (2, 4))
    assert {kernel.name: kernel.calls for kernel in four} == {kernel.name: 2 * kernel.calls for kernel in two}
    assert any("MatMul" in kernel.name or "Gemm" in kernel.name for kernel in two)
    assert all(kernel.seconds >= 0 for kernel in two) and sum(kernel.seconds for kernel in two) > 0
    assert all(torch.equal(outputs[name], expected[name]) for name in outputs)
    assert sorted(tmp_path.rglob("*")) == before
