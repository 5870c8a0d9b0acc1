"""Bundles whose engine has the plugin: `build --attention plugin` from checkpoint to manifest, and opening one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from accelaes_export.backends.cuda import TorchCuda
from accelaes_export.backends.tensorrt import TensorRTBackend
from accelaes_export.backends.tensorrt.driver import CudaDevice, DriverReport
from accelaes_export.backends.tensorrt.flavour import RTX
from accelaes_export.building.builder import build
from accelaes_export.bundle.reading import Bundle
from accelaes_export.errors import InputError, MissingComponentError
from accelaes_export.plugins.sparse_query_attention import registration
from tests.plugin.exported import serialized_layers
from tests.shallow_shapes import BLOCKS, save_shallow_shapes

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx isn't installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_shallow_shapes(tmp_path_factory.mktemp("checkpoint") / "shapes")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(
        checkpoint,
        model="shapes",
        backend="tensorrt-rtx",
        dtype="fp16",
        buckets=[0.5],
        presets="none",
        targets="sm86,sm120",
        attention="plugin",
        output=tmp_path_factory.mktemp("bundles") / "plugin",
    )


def test_a_bundle_says_that_its_engine_has_the_plugin(bundle: Bundle) -> None:
    record = bundle.manifest.backend
    assert record.plugin == "SparseQueryAttention 1"
    assert record.versions["SparseQueryAttention"] == "1"
    assert f"{BLOCKS} attentions are plugin layers, head size 32" in record.notes
    assert bundle.manifest.recipe["attention"] == "plugin"
    layers = serialized_layers((bundle.path / record.files[0]).read_bytes())
    assert len(layers) == BLOCKS * 2  # one a block and bucket


def test_the_same_model_with_native_attention_is_another_engine_of_the_same_export(
    checkpoint: Path, bundle: Bundle
) -> None:
    native = build(
        checkpoint,
        model="shapes",
        backend="tensorrt-rtx",
        dtype="fp16",
        buckets=[0.5],
        presets="none",
        targets="sm86,sm120",
        output=bundle.path.with_name("native"),
    )
    assert native.manifest.backend.plugin is None  # auto: nothing was measured
    assert native.manifest.build_key != bundle.manifest.build_key
    assert "SparseQueryAttention" not in native.manifest.backend.versions
    assert len(list((bundle.path.parent / ".stages").glob("onnx-*"))) == 1


def test_the_plugin_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fp16 and bf16, not fp32; build with --attention native"):
        build(model="shapes", backend="tensorrt-rtx", attention="plugin", output=tmp_path / "a")
    with pytest.raises(InputError, match="onnxruntime has its own attention"):
        build(model="shapes", attention="plugin", output=tmp_path / "a")
    with pytest.raises(InputError, match="attention"):
        build(model="shapes", attention="fastest", output=tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_opening_it_without_the_plugins_kernels_names_the_file_to_load(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = CudaDevice("NVIDIA Test", "sm86")
    backend = TensorRTBackend(RTX, driver=lambda: DriverReport((gpu,), "13.0", ""))
    backend._plugin._creator = object()  # the Python plugin, from building
    monkeypatch.setattr(TorchCuda, "on", lambda device: SimpleNamespace(compute_capability="sm86"))
    monkeypatch.setattr(registration, "registered", lambda library: True)
    monkeypatch.setenv("ACCELAES_CUBINS", str(tmp_path / "nothing.cubins"))
    record = bundle.manifest.backend
    with pytest.raises(MissingComponentError) as caught:
        backend.open(bundle.path, bundle.manifest.geometry.contract, record.files, versions=record.versions)
    assert str(caught.value) == (
        "This engine needs the attention plugin SparseQueryAttention 1: build libaccelaes_plugin.so and name it in "
        f"ACCELAES_PLUGIN (docs/plugin.md), or mend the Python plugin: There are no compiled attention kernels at "
        f"{tmp_path}/nothing.cubins; run accelaes-export plugin build."
    )
