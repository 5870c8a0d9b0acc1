"""Opening an engine file: what doesn't fit, and what this machine lacks. On a stand-in library, without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from accelaes_export.backends.cuda import TorchCuda
from accelaes_export.backends.tensorrt import TensorRTBackend
from accelaes_export.backends.tensorrt.driver import CudaDevice, DriverReport
from accelaes_export.backends.tensorrt.flavour import RTX, Flavour, fits
from accelaes_export.backends.tensorrt.library import Library
from accelaes_export.backends.tensorrt.opening import EngineSource, open_session
from accelaes_export.backends.tensorrt.session import TensorRTSession
from accelaes_export.errors import BundleError, InputError, MissingComponentError
from tests.backends import stand_in_tensorrt as stand_in
from tests.backends import tiny_focus_step as tiny

TABLE = tiny.contract("fp16", dynamic_text=False)


def opening(
    folder: Path,
    engine: stand_in.Engine | None,
    *,
    diagnostics: stand_in.Diagnostics = stand_in.NOTHING_WRONG,
    versions: dict[str, str] | None = None,
    targets: tuple[str, ...] = ("sm86", "sm89"),
) -> TensorRTSession:
    (folder / "focus_step.engine").write_bytes(b"plan of an engine")
    source = EngineSource(folder, ("focus_step.engine",), TABLE, versions or {}, targets)
    trt = stand_in.module(engine, diagnostics=diagnostics)
    return open_session(Library(trt, RTX), source, stand_in.Cuda(), cuda_graphs=False)


def test_an_engine_file_opens_as_a_session(tmp_path: Path) -> None:
    engine = stand_in.Engine(TABLE)
    session = opening(tmp_path, engine)
    assert session.contract == TABLE
    assert session.device == torch.device("cpu")
    assert engine.contexts == []  # memory is taken by the buckets that are used


def test_an_engine_for_another_gpu_version_or_contract_says_both_sides(tmp_path: Path) -> None:
    flags = stand_in.Diagnostics
    with pytest.raises(BundleError, match="built for sm120 and this GPU is sm89; build the bundle again with sm89"):
        opening(tmp_path, None, targets=("sm120",))
    with pytest.raises(BundleError, match="built for other GPUs and this GPU is sm89"):
        opening(tmp_path, None, targets=(), diagnostics=flags.UNSUPPORTED_CC)
    with pytest.raises(BundleError, match="built with tensorrt-rtx 1.6.0 and here is 1.7.1"):
        opening(tmp_path, None, versions={"tensorrt_rtx": "1.6.0"})
    with pytest.raises(BundleError, match="built with tensorrt-rtx of another version and here is 1.7.1"):
        opening(tmp_path, None, diagnostics=flags.VERSION_MISMATCH)
    with pytest.raises(MissingComponentError, match="needs a newer NVIDIA driver"):
        opening(tmp_path, None, diagnostics=flags.OLD_CUDA_DRIVER)
    with pytest.raises(BundleError, match="can't open focus_step.engine on sm89"):
        opening(tmp_path, None, diagnostics=flags.MALFORMED_ENGINE)
    with pytest.raises(BundleError, match="2 profile\\(s\\) and the manifest 4 buckets"):
        opening(tmp_path, stand_in.Engine(TABLE, profiles=2))
    fewer = TABLE.model_copy(update={"inputs": TABLE.inputs[:-1]})
    with pytest.raises(BundleError, match="differ from the manifest's contract in cache.1.v_bg"):
        opening(tmp_path, stand_in.Engine(fewer))
    with pytest.raises(BundleError, match="should hold one .engine file"):
        EngineSource(tmp_path, ("model.onnx",), TABLE, {}, ()).path  # noqa: B018


def test_open_ended_targets_fit_later_gpus() -> None:
    assert fits("sm80+", "sm90")
    assert fits("sm86", "sm86")
    assert not fits("sm80+", "sm75")
    assert not fits("sm86", "sm89")


def test_opening_without_a_gpu_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Flavour, "load", lambda self: stand_in.module(None))
    nowhere = TensorRTBackend(RTX, driver=lambda: DriverReport(reason="there is no NVIDIA driver"))
    with pytest.raises(MissingComponentError, match="here there is no NVIDIA driver; install NVIDIA's driver"):
        nowhere.open(tmp_path, TABLE, ("focus_step.engine",))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has CUDA")
def test_a_torch_without_cuda_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingComponentError, match="install a CUDA build of torch"):
        TorchCuda.on("cuda:0")
    with pytest.raises(InputError, match="runs on a CUDA device, not on 'cpu'"):
        TorchCuda.on("cpu")
    with pytest.raises(InputError, match="no device 'gpu0'"):
        TorchCuda.on("gpu0")
    gpu = DriverReport((CudaDevice("A card", "sm89"),), "13.0")
    here = TensorRTBackend(RTX, driver=lambda: gpu).availability()
    assert here.can_build or "can't be imported" in here.reason
    assert not here.can_run
