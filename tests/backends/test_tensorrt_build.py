"""Real TensorRT-RTX engines, built without a GPU, and what a build says when it can't be done."""

from __future__ import annotations

import _thread
import errno
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import helper

from accelaes_export.backends.base import CompiledEngine, CompileRequest
from accelaes_export.backends.tensorrt import TensorRTBackend
from accelaes_export.backends.tensorrt.driver import CudaDevice, DriverReport, ask_driver
from accelaes_export.backends.tensorrt.flavour import RTX, STANDARD
from accelaes_export.backends.tensorrt.preparation import Wanted, prepare, refuse_shared_keys
from accelaes_export.backends.tensorrt.profiles import profiles
from accelaes_export.backends.tensorrt.progress import EngineProgress
from accelaes_export.contract.tensors import DTypeName, GraphContract
from accelaes_export.errors import BuildError, InputError, MissingComponentError
from tests.backends import tiny_focus_step as tiny

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx isn't installed")


@pytest.fixture(scope="module")
def rtx() -> TensorRTBackend:
    """One for all tests: TensorRT keeps the first logger a process gives it."""
    return TensorRTBackend(RTX)


def silent(phase: str, done: float | None) -> None:
    """A progress callback that shows nothing."""


def request(folder: Path, table: GraphContract, targets: tuple[str, ...] = ("sm86",), **more: Any) -> CompileRequest:
    path = tiny.save(folder, table, external=True)
    (folder / "bundle").mkdir()
    return CompileRequest(path, table, targets, folder / "bundle", **more)


@pytest.mark.parametrize(
    ("dtype", "targets"),
    [("fp16", ("sm86", "sm120")), ("bf16", ("sm80",)), ("fp32", ("sm89",)), ("fp16", RTX.targets)],
)
def test_one_engine_with_a_profile_per_bucket_builds_without_a_gpu(
    rtx: TensorRTBackend, tmp_path: Path, dtype: DTypeName, targets: tuple[str, ...]
) -> None:
    table = tiny.contract(dtype, dynamic_text=False)
    asked = request(tmp_path, table, targets, workspace_bytes=1 << 30)
    before = {path.name for path in tmp_path.iterdir()}
    reports: list[tuple[str, float | None]] = []
    compiled = rtx.compile(asked, lambda phase, done: reports.append((phase, done)))

    assert compiled == CompiledEngine(
        ("focus_step.engine",), {"tensorrt_rtx": trt.__version__}, targets, compiled.notes
    )
    assert (asked.destination / "focus_step.engine").stat().st_size > 100_000
    assert {path.name for path in tmp_path.iterdir()} == before  # neither weights nor graph were duplicated
    assert bool(compiled.notes) == (dtype == "fp32")
    fractions = [done for phase, done in reports if phase == "build engine" and done is not None]
    assert fractions == sorted(fractions)
    assert len(fractions) > 10


def test_profiles_cover_every_bucket_from_one_row_to_guided_batches() -> None:
    made = profiles(tiny.contract(batch=2, dynamic_text=False))
    assert [p.n for p in made] == [4, 8, 12, 16]
    assert made[0].ranges["focus_index"] == ((1, 4), (4, 4), (4, 4))
    assert made[3].ranges["cache.1.v_bg"] == ((1, 2, 0, 32), (4, 2, 0, 32), (4, 2, 0, 32))
    assert made[0].ranges["token_weights"] == ((1, tiny.TEXT), (4, tiny.TEXT), (4, tiny.TEXT))


def test_a_full_disk_ends_a_build_with_the_systems_own_error(
    rtx: TensorRTBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, tiny.contract("fp16", dynamic_text=False))

    class FullDisk(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", **kw: FullDisk() if mode == "wb" else opened(path, mode, **kw)
    )
    with pytest.raises(OSError, match="No space left"):
        rtx.compile(asked, lambda phase, done: None)


def test_ctrl_c_ends_a_build_cleanly(rtx: TensorRTBackend, tmp_path: Path) -> None:
    asked = request(tmp_path, tiny.contract("fp16", dynamic_text=False))

    def interrupt(phase: str, done: float | None) -> None:
        if done is not None and 0 < done < 0.5:
            _thread.interrupt_main()

    with pytest.raises(KeyboardInterrupt):
        rtx.compile(asked, interrupt)
    assert not list(asked.destination.iterdir())
    assert rtx.compile(asked, silent).files  # and the next one works


def test_what_the_progress_callback_raises_reaches_the_caller(rtx: TensorRTBackend, tmp_path: Path) -> None:
    def broken(phase: str, done: float | None) -> None:
        if done:
            raise ConnectionError("the terminal is gone")

    with pytest.raises(ConnectionError, match="the terminal is gone"):
        rtx.compile(request(tmp_path, tiny.contract("fp16", dynamic_text=False)), broken)


def test_nested_phases_become_one_rising_fraction() -> None:
    seen: list[float | None] = []
    state = EngineProgress(lambda phase, done: seen.append(done))
    state.phase_start("build", None, 2)
    state.phase_start("tactics", "build", 4)
    assert all(state.step_complete("tactics", step) for step in range(4))
    state.phase_finish("tactics")
    state.step_complete("build", 0)
    state.step_complete("build", 1)
    assert seen == [0.125, 0.25, 0.375, 0.5, 1.0]
    state.stop()
    assert not state.step_complete("build", 1)


def test_parser_errors_are_quoted(rtx: TensorRTBackend, tmp_path: Path) -> None:
    asked = request(tmp_path, tiny.contract("fp16", dynamic_text=False))
    model = onnx.load(asked.onnx, load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "GatherElements").op_type = "GatherSomehow"
    asked.onnx.write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match=r"tensorrt-rtx can't read focus_step.onnx: .*GatherSomehow"):
        rtx.compile(asked, silent)


def test_a_graph_of_another_contract_is_refused(rtx: TensorRTBackend, tmp_path: Path) -> None:
    table = tiny.contract("fp16", dynamic_text=False)
    asked = request(tmp_path, table)
    fewer = table.model_copy(update={"inputs": tuple(s for s in table.inputs if s.name != "timestep")})
    with pytest.raises(BuildError, match="differ from its contract in timestep"):
        rtx.compile(replace(asked, contract=fewer), silent)
    with pytest.raises(InputError, match="export the model with dynamic_text off"):
        rtx.compile(replace(asked, contract=tiny.contract("fp16")), silent)
    (tmp_path / "focus_step.onnx.data").unlink()
    with pytest.raises(InputError, match="needs focus_step.onnx.data beside it"):
        rtx.compile(asked, silent)


def test_only_fp32_attention_for_rtx_is_marked_decomposable(tmp_path: Path) -> None:
    path = tiny.save(tmp_path, tiny.contract("fp32", dynamic_text=False))

    def marked(dtype: str, flavour: Any) -> list[str]:
        prepared = prepare(path, Wanted(dtype, flavour))
        graph, notes = prepared.graph, prepared.notes
        assert bool(notes) == (graph is not None)
        model = onnx.ModelProto.FromString(graph or path.read_bytes())
        return [a.name for f in model.functions for node in f.node for a in node.attribute if a.name[:3] == "TRT"]

    assert marked("fp32", RTX) == ["TRT_decomposable"]
    assert marked("fp16", RTX) == marked("fp32", STANDARD) == []


@pytest.mark.parametrize("second", ["keys", "copy", "concat", "function"])
def test_two_attentions_over_the_same_keys_are_refused_before_the_builder_crashes(second: str) -> None:
    node = helper.make_node
    nodes = [
        node("Concat", ["k", "k_bg"], ["keys"], axis=2),
        node("Identity", ["keys"], ["copy"]),
        node("Concat", ["k", "k_bg"], ["concat"], axis=2),
        node("Attention", ["q", "keys", "v"], ["one"], name="first"),
        node("Attention", ["q", "other", "v"], ["three"], name="innocent"),
        node("SparseQueryAttention", ["q", "k", "v", "k_bg", "v_bg"], ["two"], name="second", domain="accelaes")
        if second == "function"
        else node("Attention", ["q", second, "v"], ["two"], name="second"),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    with pytest.raises(BuildError, match="The attentions 'first' and 'second' share the keys 'k' \\+ 'k_bg'"):
        refuse_shared_keys(model)
    del model.graph.node[-1]
    refuse_shared_keys(model)


def test_targets_are_exactly_what_the_library_offers() -> None:
    offered = [name.lower() for name in trt.ComputeCapability.__members__ if name not in ("NONE", "CURRENT")]
    assert list(RTX.targets) == offered
    assert set(RTX.default_targets) <= set(RTX.targets)


@pytest.mark.parametrize(
    ("dtype", "targets", "sentence"),
    [
        ("fp8", ("sm86",), "no dtype 'fp8'"),
        ("fp16", ("sm90",), "sm75, sm80, sm86, sm89, sm120, sm121, native, not for sm90"),
        ("fp16", (), "not for nothing"),
        ("fp16", ("sm86", "sm86"), "name one twice"),
        ("bf16", ("sm75", "sm86"), "sm75 has no bf16"),
    ],
)
def test_what_it_cannot_do_is_said_before_building(
    rtx: TensorRTBackend, dtype: str, targets: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        rtx.check(dtype, targets)


def no_gpu() -> DriverReport:
    return DriverReport(reason="there is no NVIDIA driver (libcuda.so.1 can't be loaded)")


def one_gpu(capability: str) -> Any:
    return lambda: DriverReport((CudaDevice("A card", capability),), "13.0")


def test_without_a_gpu_rtx_builds_but_does_not_run() -> None:
    here = TensorRTBackend(RTX, driver=no_gpu).availability()
    assert (here.can_build, here.can_run) == (True, False)
    assert here.versions == {"tensorrt_rtx": trt.__version__}
    assert "no NVIDIA driver" in here.reason
    assert here.remedy.startswith("install NVIDIA's driver")
    with pytest.raises(MissingComponentError, match="The target native is this machine's GPU"):
        TensorRTBackend(RTX, driver=no_gpu).check("fp16", ("native",))


def test_the_native_target_is_this_machines_gpu() -> None:
    with pytest.raises(InputError, match="doesn't build for this machine's sm90"):
        TensorRTBackend(RTX, driver=one_gpu("sm90")).check("fp16", ("native",))
    with pytest.raises(InputError, match="sm75 has no bf16"):
        TensorRTBackend(RTX, driver=one_gpu("sm75")).check("bf16", ("native",))
    TensorRTBackend(RTX, driver=one_gpu("sm89")).check("bf16", ("native", "sm120"))
    assert "doesn't run on A card (sm90)" in TensorRTBackend(RTX, driver=one_gpu("sm90")).availability().reason


def test_a_missing_library_is_named_with_its_install_command() -> None:
    engine = TensorRTBackend(replace(STANDARD, module="tensorrt_that_is_nowhere"))
    here = engine.availability()
    assert not here.can_build
    assert here.remedy == "pip install tensorrt (its libraries come from NVIDIA's own package index)"
    with pytest.raises(MissingComponentError, match="pip install tensorrt"):
        engine.check("fp16", ("native",))


def test_asking_the_driver_never_raises() -> None:
    report = ask_driver()
    assert report.gpus or report.reason


def test_tensorrt_proper_needs_a_gpu_and_builds_for_one_target(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace(__version__="11.0")
    monkeypatch.setattr(type(STANDARD), "load", lambda self: stand_in)
    with pytest.raises(MissingComponentError, match="tensorrt can't build here: there is no NVIDIA driver"):
        TensorRTBackend(STANDARD, driver=no_gpu).check("fp16", ("native",))
    with pytest.raises(InputError, match="one target"):
        TensorRTBackend(STANDARD, driver=one_gpu("sm90")).check("fp16", ("native", "sm80+"))
    TensorRTBackend(STANDARD, driver=one_gpu("sm90")).check("bf16", ("native",))
    TensorRTBackend(STANDARD, driver=one_gpu("sm90")).check("bf16", ("sm80+",))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kernel_timings_are_kept_in_a_file_where_the_library_has_them(rtx: TensorRTBackend, tmp_path: Path) -> None:
    # TensorRT-RTX still has the calls, though it times nothing: enough to see the file come, and be read again.
    cache = tmp_path / "caches" / "tensorrt.timing"
    asked = request(tmp_path, tiny.contract("fp16", dynamic_text=False, buckets=(16,)), timing_cache=cache)
    rtx.compile(asked, silent)
    assert not cache.exists()
    timing = TensorRTBackend(replace(RTX, timing_cache=True))
    timing.compile(asked, silent)
    first = cache.read_bytes()
    cache.write_bytes(b"of another version")
    timing.compile(asked, silent)
    assert len(cache.read_bytes()) == len(first) > 0
    assert [path.name for path in cache.parent.iterdir()] == ["tensorrt.timing"]
