"""ONNX Runtime sessions against a float64 reference, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelaes_export.backends import backend, names
from accelaes_export.backends.base import CompileRequest, Session
from accelaes_export.backends.onnxruntime import OnnxRuntimeBackend
from accelaes_export.contract.tensors import DTypeName, GraphContract
from accelaes_export.errors import AccelAesError, BuildError, BundleError, InputError, MissingComponentError
from tests.backends import tiny_focus_step as tiny

pytest.importorskip("onnxruntime", reason="onnxruntime isn't installed")

EVERY_BUCKET = tuple(range(1, tiny.TOKENS + 1))


def silent(phase: str, done: float | None) -> None:
    """A progress callback that shows nothing."""


def opened(folder: Path, table: GraphContract, *, external: bool = False) -> Session:
    source, bundle = folder / "source", folder / "bundle"
    source.mkdir()
    bundle.mkdir()
    request = CompileRequest(tiny.save(source, table, external=external), table, ("cpu",), bundle)
    engine = OnnxRuntimeBackend(threads=1)
    return engine.open(bundle, table, engine.compile(request, silent).files)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """fp32, two images a call, every n a bucket."""
    return opened(tmp_path_factory.mktemp("fp32"), tiny.contract(batch=2, buckets=EVERY_BUCKET), external=True)


def run(session: Session, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    B, n = inputs["focus_index"].shape
    outputs = tiny.empty_outputs(session.contract, n, B, inputs["token_weights"].shape[1])
    session.run(inputs, outputs)
    return outputs


def differences(found: dict[str, torch.Tensor], wanted: dict[str, np.ndarray]) -> float:
    """The largest difference, relative to the tensor's range; a sum that happens to cancel counts as of order one."""
    assert found.keys() == wanted.keys()
    return max(
        float(np.abs(t.double().numpy() - wanted[name]).max() / max(1.0, np.abs(wanted[name]).max()))
        for name, t in found.items()
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, tiny.TOKENS), B=st.integers(1, 4), M=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_any_bucket_batch_and_text_length_equals_float64(session: Session, n: int, B: int, M: int, seed: int) -> None:
    inputs = tiny.draw_inputs(session.contract, n, B, M, seed)
    assert differences(run(session, inputs), tiny.reference(inputs)) < 5e-6


def test_dense_step_takes_a_background_of_no_tokens(session: Session) -> None:
    inputs = tiny.draw_inputs(session.contract, tiny.TOKENS, B=2)
    assert inputs["cache.0.k_bg"].numel() == 0
    assert differences(run(session, inputs), tiny.reference(inputs)) < 5e-6


def test_fp16_runs_on_the_cpu(tmp_path: Path) -> None:
    session = opened(tmp_path, tiny.contract("fp16"))
    for n in (4, 16):
        inputs = tiny.draw_inputs(session.contract, n)
        assert differences(run(session, inputs), tiny.reference(inputs)) < 5e-3


def test_threads_that_share_a_session_get_what_they_would_alone(session: Session) -> None:
    steps = [tiny.draw_inputs(session.contract, n, B=1 + n % 3, seed=n) for n in EVERY_BUCKET] * 4
    alone = [run(session, inputs) for inputs in steps]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda inputs: run(session, inputs), steps))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_outputs_that_are_left_out_are_not_copied(session: Session) -> None:
    inputs = tiny.draw_inputs(session.contract, 5)
    everything = run(session, inputs)
    wanted = {"focus_prediction": torch.empty_like(everything["focus_prediction"])}
    session.run(inputs, wanted)
    assert torch.equal(wanted["focus_prediction"], everything["focus_prediction"])


def test_a_repeated_step_writes_the_same_numbers_again(session: Session) -> None:
    inputs = tiny.draw_inputs(session.contract, 9)
    one, other = run(session, inputs), run(session, inputs)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda i, o: i.pop("timestep"), "Missing input timestep"),
        (lambda i, o: i.pop("focus_index"), "'focus_index' is missing"),
        (lambda i, o: i.update(guidance=torch.ones(2)), "Unknown input guidance"),
        (lambda i, o: o.update(sample=torch.ones(2)), "Unknown output sample"),
        (lambda i, o: o.clear(), "No output was asked for"),
        (lambda i, o: i.update(timestep=torch.ones(3)), "'timestep' has shape (3,); with B=2, n=8, m=8, M=6"),
        (lambda i, o: i.update(timestep=torch.ones(2).half()), "'timestep' is torch.float16; the engine takes"),
        (lambda i, o: i.update(focus_index=i["focus_index"].int()), "'focus_index' is torch.int32"),
        (lambda i, o: i.update(focus_index=torch.arange(8)), "'focus_index' has shape (8,); its contract is [B, n]"),
        (lambda i, o: i.update(focus_index=torch.arange(10).expand(2, 10)), "buckets for 4, 8, 12, 16 focus tokens"),
        (lambda i, o: i.update(hidden_states=torch.ones(3, 4, 8, 8)), "1 to 2 batch rows"),
        (lambda i, o: i.update(pooled_projections=torch.ones(10, 2).T), "'pooled_projections' is not contiguous"),
        (lambda i, o: i.update(timestep=torch.ones(2, device="meta")), "'timestep' lives on meta"),
        (lambda i, o: o.update(affinity=torch.ones(2, 7)), "'affinity' has shape (2, 7)"),
        (lambda i, o: i["focus_index"].fill_(99), "ONNX Runtime failed in a focus step"),
    ],
)
def test_a_wrong_tensor_is_refused_in_one_sentence(tmp_path: Path, change: object, sentence: str) -> None:
    session = opened(tmp_path, tiny.contract())
    inputs, outputs = tiny.draw_inputs(session.contract, 8), tiny.empty_outputs(session.contract, 8)
    change(inputs, outputs)  # type: ignore[operator]
    with pytest.raises(AccelAesError) as caught:
        session.run(inputs, outputs)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fixed_text_window_refuses_other_lengths(tmp_path: Path) -> None:
    table = tiny.contract(dynamic_text=False)
    session = opened(tmp_path, table)
    longer = tiny.draw_inputs(tiny.contract(), 8, M=7)
    with pytest.raises(InputError, match="must be \\(2, 6, 24\\)"):
        session.run(longer, tiny.empty_outputs(table, 8))


def test_the_bundle_holds_its_own_copy_of_the_weights(tmp_path: Path) -> None:
    opened(tmp_path, tiny.contract(), external=True)
    for copied in (tmp_path / "bundle").iterdir():
        original = tmp_path / "source" / copied.name
        assert copied.read_bytes() == original.read_bytes()
        assert not copied.samefile(original)
    assert {p.name for p in (tmp_path / "bundle").iterdir()} == {"focus_step.onnx", "focus_step.onnx.data"}


@pytest.mark.parametrize(
    ("dtype", "targets", "sentence"),
    [
        ("bf16", ("cpu",), "no bf16 MatMul on the CPU"),
        ("fp8", ("cpu",), "no dtype 'fp8'"),
        ("fp32", ("sm86",), "targets cpu and cuda, not sm86"),
        ("fp32", (), "not nothing"),
    ],
)
def test_what_it_cannot_do_is_said_before_building(dtype: str, targets: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        OnnxRuntimeBackend().check(dtype, targets)


def test_bf16_may_be_built_for_cuda_and_needs_it_to_open(tmp_path: Path) -> None:
    dtype: DTypeName = "bf16"
    table = tiny.contract(dtype)
    engine = OnnxRuntimeBackend()
    (tmp_path / "bundle").mkdir()
    request = CompileRequest(tiny.save(tmp_path, table), table, ("cuda",), tmp_path / "bundle")
    compiled = engine.compile(request, silent)
    with pytest.raises(MissingComponentError, match="onnxruntime-gpu"):
        engine.open(tmp_path / "bundle", table, compiled.files, device="cpu")


def test_missing_weights_an_invalid_model_and_a_spoilt_engine_are_told_apart(tmp_path: Path) -> None:
    table, engine = tiny.contract(), OnnxRuntimeBackend()
    path = tiny.save(tmp_path, table, external=True)
    (tmp_path / "bundle").mkdir()
    request = CompileRequest(path, table, ("cpu",), tmp_path / "bundle")
    (tmp_path / "focus_step.onnx.data").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="needs focus_step.onnx.data beside it"):
        engine.compile(request, silent)
    (tmp_path / "elsewhere").rename(tmp_path / "focus_step.onnx.data")
    files = engine.compile(request, silent).files
    with pytest.raises(BundleError, match="inputs differ from the manifest's contract in timestep"):
        other = table.model_copy(update={"inputs": tuple(s for s in table.inputs if s.name != "timestep")})
        engine.open(tmp_path / "bundle", other, files)
    (tmp_path / "bundle" / "focus_step.onnx").write_bytes(b"not a model")
    with pytest.raises(BundleError, match="can't open focus_step.onnx \\(the bundle was built with 1.0\\)"):
        engine.open(tmp_path / "bundle", table, files, versions={"onnxruntime": "1.0"})
    model = path.read_bytes().replace(b"MatMul", b"MutMal")
    path.write_bytes(model)
    with pytest.raises(BuildError, match="onnx finds"):
        engine.compile(request, silent)


def test_threads_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table, engine = tiny.contract(), OnnxRuntimeBackend()
    tiny.save(tmp_path, table)
    monkeypatch.setenv("ACCELAES_THREADS", "1")
    engine.open(tmp_path, table, ("focus_step.onnx",))
    monkeypatch.setenv("ACCELAES_THREADS", "many")
    with pytest.raises(InputError, match="ACCELAES_THREADS is 'many'"):
        engine.open(tmp_path, table, ("focus_step.onnx",))


def test_backends_are_found_by_name_and_load_nothing_until_used() -> None:
    assert backend("onnxruntime") is backend("onnxruntime")
    assert [backend(name).name for name in names()] == list(names())
    with pytest.raises(InputError, match="no backend 'tvm'; choose one of onnxruntime, aoti, tensorrt-rtx, tensorrt"):
        backend("tvm")
    code = (
        "import sys, accelaes_export.backends as b; [b.backend(n) for n in b.names()];"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'tensorrt_rtx', 'tensorrt'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
