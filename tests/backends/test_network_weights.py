"""Weights as inputs of an engine: written beside it bit for bit, and bound to every bucket when it is opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from accelaes_export.backends.base import CompileRequest
from accelaes_export.backends.tensorrt import TensorRTBackend
from accelaes_export.backends.tensorrt.flavour import RTX
from accelaes_export.backends.tensorrt.library import Library
from accelaes_export.backends.tensorrt.network_weights import write_weights
from accelaes_export.backends.tensorrt.opening import EngineSource, open_session
from accelaes_export.backends.weights_file import WEIGHTS_FILE
from accelaes_export.contract.tensors import DTypeName
from accelaes_export.errors import BundleError
from tests.backends import stand_in_tensorrt as stand_in
from tests.backends import tiny_focus_step as tiny

TABLE = tiny.contract("fp16", dynamic_text=False)
MATRICES = {name for name, value in tiny.weights().items() if value.ndim == 2}


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_file_holds_the_models_weights_bit_for_bit(tmp_path: Path, dtype: DTypeName) -> None:
    path = tiny.save(tmp_path, tiny.contract(dtype, dynamic_text=False), external=True)
    write_weights(path, MATRICES, tmp_path / WEIGHTS_FILE)
    written = load_file(tmp_path / WEIGHTS_FILE)
    assert set(written) == MATRICES
    for tensor in onnx.load(path).graph.initializer:
        if tensor.name in MATRICES:
            wanted = torch.from_numpy(np.array(numpy_helper.to_array(tensor)).view(np.uint8))
            assert torch.equal(written[tensor.name].view(torch.uint8), wanted)


def test_a_build_leaves_the_weights_beside_the_engine(tmp_path: Path) -> None:
    """How much smaller the engine is shows at full width only: tests/building/test_full_width.py."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx isn't installed")
    (tmp_path / "bundle").mkdir()
    path = tiny.save(tmp_path, TABLE, external=True)
    request = CompileRequest(path, TABLE, ("sm86",), tmp_path / "bundle", weights="inputs")
    compiled = TensorRTBackend(RTX).compile(request, lambda phase, done: None)
    assert compiled.files == ("focus_step.engine", WEIGHTS_FILE)
    assert compiled.notes == (f"{len(MATRICES)} weights are inputs of the engine, bound from {WEIGHTS_FILE}",)
    assert set(load_file(tmp_path / "bundle" / WEIGHTS_FILE)) == MATRICES


def opened(folder: Path, engine: stand_in.Engine) -> object:
    (folder / "focus_step.engine").write_bytes(b"plan of an engine")
    source = EngineSource(folder, ("focus_step.engine", WEIGHTS_FILE), TABLE, {}, ())
    trt = stand_in.module(engine)
    return open_session(Library(trt, RTX), source, stand_in.Cuda(), cuda_graphs=False)


def test_every_bucket_is_bound_to_the_same_weights(tmp_path: Path) -> None:
    weights = {"q0": torch.rand(8, 8), "k0": torch.rand(8, 8)}
    save_file(weights, tmp_path / WEIGHTS_FILE)
    engine = stand_in.Engine(TABLE)
    engine.names += list(weights)
    engine.num_io_tensors = len(engine.names)
    session = opened(tmp_path, engine)
    for n in (4, 16):
        inputs, outputs = tiny.draw_inputs(TABLE, n, 2), tiny.empty_outputs(TABLE, n, 2)
        session.run(  # type: ignore[attr-defined]
            {name: stand_in.aligned(t) for name, t in inputs.items()},
            {name: stand_in.aligned(t) for name, t in outputs.items()},
        )
    first, second = engine.contexts
    assert {name: first.addresses[name] for name in weights} == {name: second.addresses[name] for name in weights}


def test_weights_of_another_engine_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="can't be read"):
        opened(tmp_path, stand_in.Engine(TABLE))
    save_file({"stranger": torch.rand(2, 2)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(BundleError, match="differ from the manifest's contract in stranger"):
        opened(tmp_path, stand_in.Engine(TABLE))
