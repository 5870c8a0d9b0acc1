"""TensorRT's engine format without TensorRT: its own code, with a library that stands in for NVIDIA's.

tests/native/tensorrt_on_cpu has what it calls of NVIDIA's headers, and computes with ONNX Runtime, as strict as
TensorRT about profiles, shapes and addresses; the tensors lie in the memory of tests/native/cuda_on_cpu. That it
compiles against NVIDIA's headers and runs on a GPU isn't shown here.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from accelaes_export.backends.tensorrt.flavour import RTX
from accelaes_export.backends.tensorrt.profiles import profiles
from accelaes_export.backends.weights_file import WEIGHTS_FILE
from accelaes_export.bundle.reading import MANIFEST, Bundle
from accelaes_export.policies import from_name
from accelaes_export.runtime.generate import generate, load_pipeline
from tests.native import golden
from tests.native.building import CUDA, ONNXRUNTIME, SOURCES, golden_program, stand_in
from tests.native.library import Native, NativeError

pytestmark = pytest.mark.xdist_group("native")
PROMPT = "an intricate red star on the left, plain blue background"
Ranges = dict[str, tuple[Sequence[int], Sequence[int]]]
"""Smallest and largest shapes of the inputs that vary."""


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CUDA's functions, TensorRT-RTX's format, and the library that it opens."""
    folder = tmp_path_factory.mktemp("tensorrt")
    stand_in(folder / "libaccelaes_cuda.so", *CUDA)
    texts = {"NAME": "tensorrt-rtx", "PACKAGE": "tensorrt_rtx", "LIBRARY": "libtensorrt_rtx.so"}
    defined = [f'-DACCELAES_TENSORRT_{name}="{text}"' for name, text in texts.items()]
    sources = [SOURCES / "engines" / "tensorrt" / "engine.cpp", SOURCES / "engines" / "weights.cpp"]
    stand_in(folder / "libaccelaes_tensorrt-rtx.so", *defined, *sources, strict=True)
    stand_in(folder / "libnvinfer.so", Path(__file__).parent / "tensorrt_on_cpu" / "nvinfer.cpp")
    return folder


@pytest.fixture(autouse=True)
def environment(engines: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELAES_REAL_FORMAT", str(library.parent / "libaccelaes_onnxruntime.so"))
    monkeypatch.setenv("ACCELAES_ONNXRUNTIME", str(ONNXRUNTIME))
    monkeypatch.setenv("ACCELAES_MEMORY", str(engines / "libaccelaes_cuda.so"))


def engine(graph: bytes, inputs: Iterable[Any], outputs: Iterable[Any], varying: Sequence[Ranges]) -> bytes:
    """What the stand-in takes for an engine of these profiles."""
    lines = [f"stand-in {len(varying)}"]
    for kind, specs in (("input", inputs), ("output", outputs)):
        lines += [" ".join(map(str, (kind, spec["name"], spec["dtype"], *spec["shape"]))) for spec in specs]
    for k, ranges in enumerate(varying):
        for name, (least, most) in ranges.items():
            lines.append(" ".join(map(str, ("profile", k, name, len(least), *least, *most))))
    return "\n".join([*lines, "end", ""]).encode() + graph


def as_tensorrt(bundle: Bundle, folder: Path) -> Path:
    """The bundle as it would be had it been built for TensorRT-RTX."""
    shutil.copytree(bundle.path, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    geometry, components = manifest["geometries"][0], manifest["components"]
    contract = bundle.manifest.geometry.contract.model_copy(update={"dynamic_text": False})
    of_buckets = [{name: (least, most) for name, (least, _, most) in p.ranges.items()} for p in profiles(contract)]

    def convert(owner: dict[str, Any], table: dict[str, Any], varying: Sequence[Ranges] | None) -> None:
        if varying is None:  # a component or program: letters from 1 on
            shapes = {spec["name"]: spec["shape"] for spec in table["inputs"]}
            ends = [[n if isinstance(d, str) else d for d in shape] for shape in shapes.values() for n in (1, 4096)]
            varying = [dict(zip(shapes, zip(ends[::2], ends[1::2], strict=True), strict=True))]
        source = folder / owner["files"][0]
        written = source.with_suffix(".engine")
        if source.exists():
            written.write_bytes(engine(source.read_bytes(), table["inputs"], table["outputs"], varying))
            source.unlink()
            name = str(written.relative_to(folder))
            del manifest["files"][owner["files"][0]]
            digest = hashlib.sha256(written.read_bytes()).hexdigest()
            manifest["files"][name] = {"sha256": digest, "size": written.stat().st_size}
        owner["files"] = [str(written.relative_to(folder))]

    convert(manifest["backend"], geometry["contract"], of_buckets)
    graphs = [graph for preset in geometry["presets"] for graph in preset["programs"].values()]
    graphs += [encoder["graph"] for encoder in components["encoders"].values()]
    graphs += [components["conditioning"], *(geometry["vae"][part] for part in ("latents", "decoder", "encoder"))]
    for graph in graphs:
        convert(graph, graph, None)
    manifest["backend"] |= {"name": RTX.name, "versions": {RTX.module: "1.7.1"}, "targets": ["sm89"]}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def with_weights_beside(folder: Path, *, count: int = 5) -> Path:
    """The same with the engine's largest weights as inputs, in a file beside it."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (name,) = manifest["backend"]["files"]
    described, graph = (folder / name).read_bytes().split(b"\nend\n", 1)
    model = onnx.load_model_from_string(graph)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    wide = sorted((n for n, a in constants.items() if a.dtype == np.float32), key=lambda n: -constants[n].size)[:count]
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in wide]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    lines = []
    for one in wide:
        shape = constants[one].shape
        model.graph.input.append(onnx.helper.make_tensor_value_info(one, onnx.TensorProto.FLOAT, shape))
        lines.append(" ".join(map(str, ("input", one, "fp32", *shape))).encode())
    (folder / name).write_bytes(b"\n".join([described, *lines, b"end", b""]) + model.SerializeToString())
    save_file({one: np.ascontiguousarray(constants[one]) for one in wide}, folder / WEIGHTS_FILE)
    manifest["backend"]["files"].append(WEIGHTS_FILE)
    for written in (name, WEIGHTS_FILE):
        data = (folder / written).read_bytes()
        manifest["files"][written] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def converted(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_tensorrt(bundle, tmp_path_factory.mktemp("rtx") / "bundle")


def opening(engines: Path, **more: object) -> dict[str, object]:
    library = str(engines / "libnvinfer.so").encode()
    return {"library": library, "device": b"cuda", "engines": str(engines).encode(), **more}


@pytest.mark.parametrize("beside", [False, True])
def test_whole_trajectories_are_pythons(
    library: Path, engines: Path, converted: Path, bundle: Bundle, tmp_path: Path, beside: bool
) -> None:
    if beside:
        converted = with_weights_beside(Path(shutil.copytree(converted, tmp_path / "beside")))
    count = golden.write_all(bundle, tmp_path / "golden", (random.Random(k) for k in range(4 if beside else 12)))
    options = ["--device", "cuda", "--engines", str(engines)]
    done = golden_program(library, "check", converted, tmp_path / "golden", *options, runtime=engines / "libnvinfer.so")
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.startswith(f"{count} settings, ")


def test_a_prompt_becomes_the_picture_that_python_draws(
    native: Native, engines: Path, converted: Path, bundle: Bundle
) -> None:
    """Text encoders and VAE give and take numbers on the host."""
    opened, pipe, size = native.open(converted, **opening(engines)), load_pipeline(bundle), {"height": 48, "width": 48}
    for name in ("dense", "drift:budget=8"):
        own = bundle.preset(name)
        made = generate(bundle, PROMPT, steps=own.steps, policy=from_name(own.policy, own.options), seed=3, pipe=pipe)
        run = opened.run(None, None, preset=name.encode(), seed=3)
        run.prompt(PROMPT)
        while run.next()[1]:
            pass
        (found,) = run.picture(size["height"], size["width"])
        assert np.abs(found.astype(int) - np.asarray(made.image).astype(int)).max() <= 1, name
        run.free()
    opened.close()


def refused(native: Native, folder: Path, **options: object) -> tuple[int, str]:
    with pytest.raises(NativeError) as error:
        native.open(folder, **options)
    return error.value.code, str(error.value)


def test_what_is_in_the_way_is_told_in_one_sentence(
    native: Native, engines: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = opening(engines)
    code, said = refused(native, converted, **given | {"device": b"cpu"})
    assert (code, "runs on an NVIDIA GPU; open it with options.device cuda" in said) == (2, True), said
    code, said = refused(native, converted, **given | {"library": b"/nowhere/libtensorrt_rtx.so.1"})
    assert code == 4 and "tensorrt-rtx can't be loaded" in said and "give its libtensorrt_rtx.so.1" in said
    code, said = refused(native, converted, **given | {"library": b"libm.so.6"})
    assert code == 4 and "libm.so.6 is no tensorrt-rtx" in said

    def changed(change: Any) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(converted, folder)
        manifest = json.loads((folder / MANIFEST).read_text())
        change(folder, manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest))
        return folder

    def damaged(folder: Path, manifest: dict[str, Any]) -> None:
        manifest["backend"]["versions"]["tensorrt_rtx"] = "1.6.0"
        name = manifest["backend"]["files"][0]
        (folder / name).write_bytes(b"x" * manifest["files"][name]["size"])

    code, said = refused(native, changed(damaged), **given | {"skip_hashes": 1})
    assert code == 2
    assert "can't be opened of release 1.6.0, and here is 1.7.1 (tensorrt-rtx says: this is no engine)" in said

    def renamed(folder: Path, manifest: dict[str, Any]) -> None:
        name = manifest["backend"]["files"][0]
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data.replace(b"input timestep", b"input timestop", 1))

    code, said = refused(native, changed(renamed), **given | {"skip_hashes": 1})
    assert code != 0 and ("others than the manifest's" in said or "can't be opened" in said), said

    def with_plugin(folder: Path, manifest: dict[str, Any]) -> None:
        manifest["backend"]["versions"]["SparseQueryAttention"] = "1"

    plugged = changed(with_plugin)
    code, said = refused(native, plugged, **given)
    assert code == 4 and "layers of the attention plugin; name its library in ACCELAES_PLUGIN (docs/plugin.md)" in said
    monkeypatch.setenv("ACCELAES_PLUGIN", "libm.so.6")  # any library will do for the stand-in
    native.open(plugged, **given).close()


def test_an_engine_that_would_write_more_than_the_manifest_says_is_refused(
    native: Native, engines: Path, converted: Path, tmp_path: Path
) -> None:
    """Behind a manifest that agrees with the file: the engine's own sizes are asked for."""

    def altered(change: Any) -> Path:
        folder = Path(
            shutil.copytree(with_weights_beside(Path(shutil.copytree(converted, tmp_path / "w"))), tmp_path / "a")
        )
        shutil.rmtree(tmp_path / "w")
        manifest = json.loads((folder / MANIFEST).read_text())
        change(folder, manifest)
        (folder / MANIFEST).write_text(json.dumps(manifest))
        return folder

    def wider(folder: Path, manifest: dict[str, Any]) -> None:
        name = manifest["backend"]["files"][0]
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(
            data.replace(b"output focus_prediction fp32 B n 16\n", b"output focus_prediction fp32 B n 99\n")
        )

    folder = altered(wider)
    opened = native.open(folder, **opening(engines, skip_hashes=1))
    run = opened.run(None, None, preset=b"dense", seed=3)
    run.prompt(PROMPT)
    with pytest.raises(
        NativeError, match="The engine's focus_prediction has another type or size than the manifest says"
    ):
        run.next()
    run.free()
    opened.close()
    shutil.rmtree(folder)

    def shorter(folder: Path, manifest: dict[str, Any]) -> None:
        weights = load_file(folder / WEIGHTS_FILE)
        first = sorted(weights)[0]
        save_file({**weights, first: weights[first][:1].copy()}, folder / WEIGHTS_FILE)
        size = (folder / WEIGHTS_FILE).stat().st_size
        manifest["files"][WEIGHTS_FILE]["size"] = size

    code, said = refused(native, altered(shorter), **opening(engines, skip_hashes=1))
    assert (code, "is of another size; build the bundle again" in said) == (2, True), said
