"""The plugin in Python: real TensorRT-RTX engines with its layers, built without a GPU, and calls without an engine."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from accelaes_export.backends.base import CompileRequest
from accelaes_export.backends.tensorrt import TensorRTBackend
from accelaes_export.backends.tensorrt.flavour import RTX
from accelaes_export.backends.tensorrt.preparation import narrow_biases
from accelaes_export.contract.tensors import GraphContract
from accelaes_export.errors import BuildError, MissingComponentError
from accelaes_export.plugins.sparse_query_attention import registration
from accelaes_export.plugins.sparse_query_attention.cubins import write_pack
from accelaes_export.plugins.sparse_query_attention.driver import Driver
from accelaes_export.plugins.sparse_query_attention.errors import MissingError, PluginError
from accelaes_export.plugins.sparse_query_attention.tensorrt_plugin import plugin_creator
from tests.backends import tiny_focus_step as tiny
from tests.plugin.exported import exported, serialized_layers
from tests.plugin.test_launching import BEST, BIASED, OTHER, StandInDriver
from tests.thorough import thorough_but

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx isn't installed")

SD35 = {
    "qk_norm": "rms_norm",
    "dual_attention_layers": [0],
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "num_layers": 2,
    "pos_embed_max_size": 8,
}
QWEN = {"attention_head_dim": 40, "axes_dims_rope": [8, 16, 16], "num_layers": 2}
TARGETS = ("sm80", "sm86", "sm89", "sm120")


@pytest.fixture(scope="module")
def rtx() -> TensorRTBackend:
    return TensorRTBackend(RTX)


@pytest.fixture(scope="module")
def sd35(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphContract, Path]:
    return exported(tmp_path_factory.mktemp("sd35"), "sd3", (64, 64), **SD35)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphContract, Path]:
    """Masks its text."""
    return exported(tmp_path_factory.mktemp("qwen"), "qwen-image", (64, 64), **QWEN)


def silent(phase: str, done: float | None) -> None:
    """A progress callback that shows nothing."""


def attentions(path: Path) -> list[onnx.NodeProto]:
    model = onnx.load(path, load_external_data=False)
    return [node for node in model.graph.node if node.op_type == "SparseQueryAttention"]


@pytest.mark.parametrize(("family", "head_dim"), thorough_but([("sd35", 32)], [("sd35", 32), ("qwen", 40)]))
def test_one_engine_with_plugin_layers_for_several_targets_and_every_buckets_profile(
    rtx: TensorRTBackend, tmp_path: Path, request: pytest.FixtureRequest, family: str, head_dim: int
) -> None:
    contract, path = request.getfixturevalue(family)
    nodes = attentions(path)
    assert len(nodes) >= 2
    (tmp_path / "engine").mkdir()
    wanted = CompileRequest(path, contract, TARGETS, tmp_path / "engine", attention="plugin")
    compiled = rtx.compile(wanted, silent)
    engine = (tmp_path / "engine" / compiled.files[0]).read_bytes()

    assert compiled.targets == TARGETS
    assert compiled.versions["SparseQueryAttention"] == "1"
    assert f"{len(nodes)} attentions are plugin layers, head size {head_dim}" in compiled.notes
    layers = serialized_layers(engine)
    assert len(layers) == len(nodes) * len(contract.buckets)
    # One element each, and no tile: on the GPU it runs on, the table chooses.
    assert set(layers) == {(1, np.float32(head_dim**-0.5).item(), 1, 0)}


def test_a_bias_that_is_the_same_for_all_queries_reaches_the_plugin_as_one_row(
    qwen: tuple[GraphContract, Path],
) -> None:
    """Qwen-Image's mask of the text: in the ONNX function it is expanded, for the plugin it is [B, 1, 1, nk + m]."""
    _, path = qwen
    model = onnx.load(path, load_external_data=False)
    expanded = {node.input[5] for node in attentions(path)}
    assert narrow_biases(model) == 2
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    biases = {node.input[5] for node in model.graph.node if node.op_type == "SparseQueryAttention"}
    assert not biases & expanded
    assert {made_by[name] for name in biases} == {"Unsqueeze"}
    assert narrow_biases(model) == 0


def test_the_same_graph_without_the_plugin_has_tensorrts_own_attention(rtx: TensorRTBackend, tmp_path: Path) -> None:
    table = tiny.contract("fp16", dynamic_text=False)
    path = tiny.save(tmp_path, table)
    for attention, layers in (("native", 0), ("plugin", tiny.LAYERS)):
        folder = tmp_path / attention
        folder.mkdir()
        request = CompileRequest(path, table, ("sm86",), folder, attention=attention)
        compiled = rtx.compile(request, silent)
        found = serialized_layers((folder / compiled.files[0]).read_bytes())
        assert len(found) == layers * len(table.buckets)
        assert ("SparseQueryAttention" in compiled.versions) == bool(layers)


def test_fp32_and_graphs_without_our_attention_are_refused(rtx: TensorRTBackend, tmp_path: Path) -> None:
    table = tiny.contract("fp32", dynamic_text=False)
    path = tiny.save(tmp_path, table)
    request = CompileRequest(path, table, ("sm86",), tmp_path, attention="plugin")
    with pytest.raises(BuildError, match="another dtype than fp16 and bf16; build with --attention native"):
        rtx.compile(request, silent)
    renamed = tiny.contract("fp16", dynamic_text=False)
    path = tiny.save(tmp_path, renamed)
    model = onnx.load(path)
    for node in (*model.graph.node, *model.functions):
        if getattr(node, "op_type", getattr(node, "name", "")) == "SparseQueryAttention":
            setattr(node, "op_type" if hasattr(node, "op_type") else "name", "Renamed")
    onnx.save(model, path)
    with pytest.raises(BuildError, match="no attention that the plugin could take.*--attention native"):
        rtx.compile(CompileRequest(path, renamed, ("sm86",), tmp_path, attention="plugin"), silent)


def described(*shape: int, dtype: Any = None, layout: Any = None) -> Any:
    """A tensor's description at run time."""
    return SimpleNamespace(dims=shape, type=dtype or trt.DataType.HALF, format=layout or trt.TensorFormat.LINEAR)


def ranged(*shape: int, dtype: Any = None, layout: Any = None, most: tuple[int, ...] = ()) -> Any:
    """A tensor's description while building."""
    return SimpleNamespace(desc=described(*shape, dtype=dtype, layout=layout), max=most or shape)


def layer(driver: Driver | None = None, scale: float = 0.125, tile: int | None = None) -> Any:
    """A plugin made as TensorRT makes one from an ONNX node's attributes."""

    def find() -> Driver:
        if driver is None:
            raise MissingError("there is no driver")
        return driver

    fields = [trt.PluginField("scale", np.array([scale], np.float32), trt.PluginFieldType.FLOAT32)]
    if tile is not None:
        fields.append(trt.PluginField("tile", np.array([tile], np.int32), trt.PluginFieldType.INT32))
    creator = plugin_creator(trt, find)
    return creator.create_plugin("a", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)


QKV = [(2, 4, 5, 64), *[(2, 2, 13, 64)] * 2, *[(2, 2, 7, 64)] * 2]


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    write_pack(tmp_path / "pack", [BEST, OTHER, BIASED])
    return Driver(StandInDriver(), tmp_path / "pack")


def run(plugin: Any, *bias: tuple[int, ...]) -> dict[str, Any]:
    """Enqueue one call with made-up addresses; what was launched."""
    descriptions = [described(*shape) for shape in (*QKV, *bias)]
    plugin.on_shape_change(descriptions, [descriptions[0]])
    plugin.enqueue(descriptions, [descriptions[0]], list(range(101, 101 + len(descriptions))), [200], 300, 400)
    return plugin._driver._cuda.launches[-1]


def test_a_call_launches_the_kernel_on_tensorrts_addresses_and_stream(driver: Driver) -> None:
    launch = run(layer(driver).attach_to_context(None))
    values = launch["values"]
    assert [values[name] for name in ("q", "k", "v", "k_bg", "v_bg", "out")] == [101, 102, 103, 104, 105, 200]
    assert (values["bias"], values["scratch"], launch["stream"]) == (None, 300, 400)
    assert (values["scale"], values["background"], values["group"]) == (0.125, 7, 2)
    biased = run(layer(driver), (2, 1, 5, 20))
    assert biased["values"]["bias"] == 106
    assert driver._cuda.loaded == [b"best", b"biased"]


def test_tactics_are_tiles_and_the_one_that_was_set_runs_and_is_serialised(driver: Driver) -> None:
    plugin = layer(driver)
    inputs = [ranged(*shape) for shape in QKV]
    plugin.configure_plugin(inputs, [inputs[0]])
    codes = plugin.get_valid_tactics()
    assert codes == [BEST.kernel.tile.code, OTHER.kernel.tile.code]
    plugin.set_tactic(codes[1])
    run(plugin)
    assert driver._cuda.loaded == [b"other"]
    fields = {field.name: field for field in plugin.get_fields_to_serialize()}
    assert {name: (field.type, field.size) for name, field in fields.items()} == {
        "scale": (trt.PluginFieldType.FLOAT32, 1),
        "tile": (trt.PluginFieldType.INT32, 1),
    }
    again = layer(driver, tile=int(np.frombuffer(bytes(fields["tile"].data), np.int32)[0]))
    run(again)
    assert driver._cuda.loaded == [b"other"]


def test_all_layers_of_an_engine_share_one_driver_and_its_kernels(driver: Driver) -> None:
    asked: list[int] = []

    def find() -> Driver:
        asked.append(1)
        return driver

    creator = plugin_creator(trt, find)
    fields = [trt.PluginField("scale", np.array([0.5], np.float32), trt.PluginFieldType.FLOAT32)]
    for _ in range(3):
        run(creator.create_plugin("a", trt.PluginFieldCollection(fields), trt.TensorRTPhase.RUNTIME))
    assert len(asked) == 1
    assert driver._cuda.loaded == [b"best"]


def test_without_a_gpu_there_are_no_tactics_and_engines_are_built_all_the_same() -> None:
    plugin = layer(None)
    assert plugin.get_valid_tactics() == []
    inputs = [ranged(*shape) for shape in QKV]
    plugin.configure_plugin(inputs, [inputs[0]])
    assert plugin.get_valid_tactics() == []
    with pytest.raises(MissingError):
        run(plugin)


def test_formats_head_sizes_and_workspace() -> None:
    plugin = layer()
    good = [ranged(*QKV[0])] * 6
    assert all(plugin.supports_format_combination(i, good, 5) for i in range(6))
    assert not plugin.supports_format_combination(1, [good[0], ranged(*QKV[1], dtype=trt.DataType.BF16)], 5)
    single = [ranged(*QKV[0], dtype=trt.DataType.FLOAT)] * 6
    assert not plugin.supports_format_combination(0, single, 5)
    packed = [ranged(*QKV[0], layout=trt.TensorFormat.CHW32)] * 6
    assert not plugin.supports_format_combination(0, packed, 5)
    assert not plugin.supports_format_combination(0, good, 4)
    with pytest.raises(ValueError, match="not 20"):
        plugin.configure_plugin([ranged(2, 4, 5, 20)] * 5, [])
    assert plugin.get_workspace_size([ranged(*QKV[0], most=(2, 24, 4096, 64))], []) == 64 * 24 * 2 * 1024


def test_a_layer_without_its_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="no attribute 'scale'"):
        plugin_creator(trt).create_plugin("a", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)


def test_registering_twice_is_once_and_the_parsers_library_can_be_opened(rtx: TensorRTBackend) -> None:
    kept = registration.register(trt)
    assert registration.register(trt) is None
    assert registration.registered(trt)
    assert kept is None or kept.name == "SparseQueryAttention"
    assert ctypes.CDLL("libtensorrt_rtx.so").createInferBuilder_INTERNAL  # reached through the empty library


def test_a_library_that_is_not_there_or_is_no_plugin_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "registered", lambda library: False)
    with pytest.raises(MissingError, match="no attention plugin at .*docs/plugin.md"):
        registration.register(trt, tmp_path / "libaccelaes_plugin.so")
    monkeypatch.setenv("ACCELAES_PLUGIN", str(tmp_path / "other.so"))
    with pytest.raises(MissingError, match="other.so"):
        registration.register(trt)
    own = registration._mapped_file("libtensorrt_rtx.so.")
    assert own is not None
    (tmp_path / "other.so").write_bytes(registration.empty_library("other.so", needed=own.name, like=own))
    with pytest.raises(PluginError, match="loaded no plugin SparseQueryAttention 1"):
        registration.register(trt)


def test_opening_an_engine_with_the_plugin_needs_its_kernels_for_this_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelaes_export.backends.tensorrt.attention_plugin import AttentionPlugin

    contract: GraphContract = tiny.contract("fp16", dynamic_text=False)
    wide = contract.model_copy(
        update={"cache": tuple(entry.model_copy(update={"head_dim": 64}) for entry in contract.cache)}
    )
    monkeypatch.setattr(registration, "registered", lambda library: False)  # by the C++ library, for instance
    monkeypatch.setattr(trt.get_plugin_registry().__class__, "register_creator", lambda *_: True, raising=False)
    monkeypatch.setenv("ACCELAES_CUBINS", str(tmp_path / "pack"))
    plugin = AttentionPlugin()
    with pytest.raises(
        MissingComponentError, match=r"libaccelaes_plugin.so and name it in ACCELAES_PLUGIN.*plugin build"
    ):
        plugin.require(trt, wide, "sm86")
    write_pack(tmp_path / "pack", [BEST])
    plugin.require(trt, wide, "sm86")
    with pytest.raises(MissingComponentError, match=r"--arch sm86 --head-dim 32\."):
        plugin.require(trt, contract, "sm86")
    with pytest.raises(MissingComponentError, match=r"--arch sm120 --head-dim 64\."):
        plugin.require(trt, wide, "sm120")


def test_a_mapped_librarys_path_is_found_among_paths_of_any_bytes(tmp_path):
    odd, own = tmp_path / os.fsdecode(b"\xda\xc2\x85"), tmp_path / "libmapped_by_a_test.so"
    for path in (odd, own):
        path.write_bytes(b"x" * 5000)
    with odd.open("rb") as one, own.open("rb") as other:
        kept = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for file in (one, other)]
        assert registration._mapped_file("libmapped_by_a_test.") == own
        for mapped in kept:
            mapped.close()
