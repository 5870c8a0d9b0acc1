"""The plugin in C++: built where the headers are, called without TensorRT, loaded into TensorRT-RTX to build an engine.

TENSORRT_INCLUDE_DIR=.../TensorRT/include pytest tests/plugin/test_cpp_plugin.py
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from accelaes_export.plugins.sparse_query_attention.cubins import Cubin, Kernel, write_pack
from accelaes_export.plugins.sparse_query_attention.launching import Sizes, grid, parameters, scratch_bytes
from accelaes_export.plugins.sparse_query_attention.tiles import Tile
from tests.backends import tiny_focus_step as tiny

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "plugins/sparse_query_attention/cpp"
HERE = Path(__file__).parent / "cpp"


def header_folder(header: str, *folders: str | None) -> Path | None:
    return next((Path(folder) for folder in folders if folder and (Path(folder) / header).is_file()), None)


TENSORRT = header_folder("NvInferRuntime.h", os.environ.get("TENSORRT_INCLUDE_DIR"), "/usr/include/x86_64-linux-gnu")
CUDA = header_folder("cuda_runtime_api.h", os.environ.get("CUDA_INCLUDE_DIR"), "/usr/local/cuda/include")
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake isn't installed")

BEST = Cubin(Kernel("sm86", "fp16", 64, False, Tile(128, 64, 4, 3)), True, 49153, 0, b"best")
OTHER = Cubin(Kernel("sm86", "fp16", 64, False, Tile(64, 64, 8, 3)), False, 1024, 512, b"othr")
OLDER = Cubin(Kernel("sm80", "fp16", 64, False, Tile(64, 64, 4, 3)), True, 1024, 0, b"oldr")
BIASED = Cubin(Kernel("sm86", "fp16", 64, True, Tile(128, 64, 4, 3)), True, 1024, 0, b"bias")


def configure(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-S", str(SOURCES), "-B", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if TENSORRT is None:
        pytest.skip("NvInferRuntime.h isn't here: set TENSORRT_INCLUDE_DIR (docs/plugin.md)")
    if CUDA is None:
        pytest.skip("cuda_runtime_api.h isn't here: set CUDA_INCLUDE_DIR")
    if shutil.which("cmake") is None or shutil.which("g++") is None:
        pytest.skip("cmake and g++ aren't both installed")
    folder = tmp_path_factory.mktemp("cpp")
    write_pack(folder / "pack", [BEST, OTHER, OLDER, BIASED])
    given = [f"-DTENSORRT_INCLUDE_DIR={TENSORRT}", f"-DCUDA_INCLUDE_DIR={CUDA}", f"-DACCELAES_CUBINS={folder / 'pack'}"]
    made = configure(folder / "build", *given)
    assert made.returncode == 0, made.stderr
    made = subprocess.run(["cmake", "--build", str(folder / "build")], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout
    return folder / "build" / "libaccelaes_plugin.so"


def test_it_needs_no_library_of_cuda_or_tensorrt_to_be_loaded(library: Path) -> None:
    needed = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout
    assert not re.findall(r"cuda|nvinfer|tensorrt|not found", needed)


def test_its_calls_are_the_python_plugins_calls(library: Path, tmp_path: Path) -> None:
    program = tmp_path / "call_plugin"
    includes = [f"-isystem{TENSORRT}", f"-isystem{CUDA}"]
    compile_ = ["g++", "-std=c++17", *includes, str(HERE / "call_plugin.cpp"), "-ldl", "-o", str(program)]
    subprocess.run(compile_, check=True)
    stand_in = ["gcc", "-shared", "-fPIC", str(HERE / "stand_in_cuda.c"), "-o", str(tmp_path / "libcuda.so.1")]
    subprocess.run(stand_in, check=True)
    ran = subprocess.run(
        [program, library], env={"LD_LIBRARY_PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    lines = ran.stdout.splitlines()
    assert lines[0] == "creators 1 SparseQueryAttention 1 []"

    shapes = [(2, 4, 5, 64), *[(2, 2, 13, 64)] * 2, *[(2, 2, 7, 64)] * 2]

    def launched(cubin: Cubin, *bias: tuple[int, ...]) -> str:
        sizes = Sizes.of([*shapes, *bias])
        values = parameters(sizes, 0.125, [101, 102, 103, 104, 105, 106 if bias else 0, 200], 300)
        block = 32 * cubin.kernel.tile.warps
        numbers = [*grid(sizes, cubin.kernel.tile), block, 1, 1, cubin.shared, 400, *values]
        return " ".join(["launch", cubin.image.decode(), *map(str, numbers)])

    launches = [line for line in lines if line.startswith("launch")]
    assert launches == [
        launched(BEST),
        launched(OTHER),
        launched(BIASED, (2, 1, 5, 20)),
        launched(BIASED, (1, 1, 1, 20)),
    ]
    assert lines.count("shared 8 49153") == 1
    codes = f"{BEST.kernel.tile.code} {OTHER.kernel.tile.code}"
    assert f"formats 1 configured 0 workspace {scratch_bytes(2, 4, 5)} tactics {codes}" in lines
    # Both fields: name, TensorRT's number of the type, one element, its bits.
    bits = struct.pack(">f", 0.125).hex()
    assert [line for line in lines if line.startswith("field")][:4] == [
        f"field scale 1 1 {bits}",
        "field tile 5 1 00000000",
        f"field scale 1 1 {bits}",
        f"field tile 5 1 {OTHER.kernel.tile.code:08x}",
    ]

    assert lines.count("refused") == 2
    assert "log The attention's bias must be [1 or B, 1, 1 or nq, nk + m]." in lines
    assert "log The attention's queries don't fit its keys and values." in lines
    (missing,) = [line for line in lines if "no attention kernel for this GPU and head size 128" in line]
    assert lines[lines.index(missing) + 1] == "enqueue -1"
    assert sum(line.startswith("formats 0") for line in lines) == 1  # fp32
    assert lines[-1] == "no scale: 1"


def test_tensorrt_rtx_loads_it_and_builds_an_engine_that_is_the_python_plugins(library: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx isn't installed")
    tiny.save(tmp_path, tiny.contract("fp16", dynamic_text=False))
    engines = {}
    for name, given in (("python", ""), ("cpp", str(library))):
        (tmp_path / name).mkdir()
        code = _BUILD.format(root=str(ROOT), folder=str(tmp_path), name=name)
        environment = {**os.environ, "ACCELAES_PLUGIN": given}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.split() == ["True", "False" if given else "True"]
        engines[name] = (tmp_path / name / "focus_step.engine").read_bytes()
    layers = [
        re.findall(rb"\x02\0\0\0.{8}\x06\0\0\0scale\0.{12}.{4}tile\0.{12}", e, re.DOTALL) for e in engines.values()
    ]
    assert len(layers[0]) == tiny.LAYERS * 4
    assert layers[0] == layers[1]  # byte for byte
    assert len(engines["python"]) == len(engines["cpp"])


_BUILD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import tensorrt_rtx as trt
from accelaes_export.backends.base import CompileRequest
from accelaes_export.backends.tensorrt import TensorRTBackend
from accelaes_export.backends.tensorrt.flavour import RTX
from accelaes_export.plugins.sparse_query_attention.registration import registered
from tests.backends import tiny_focus_step as tiny
folder = Path({folder!r})
table = tiny.contract("fp16", dynamic_text=False)
backend = TensorRTBackend(RTX)
request = CompileRequest(folder / "focus_step.onnx", table, ("sm86", "sm120"), folder / {name!r}, attention="plugin")
backend.compile(request, lambda phase, done: None)
print(registered(trt), backend._plugin._creator is not None)
"""


@needs_cmake
def test_without_headers_or_kernels_cmake_says_how_to_get_them(tmp_path: Path) -> None:
    if header_folder("NvInferRuntime.h", "/usr/include", "/usr/include/x86_64-linux-gnu"):
        pytest.skip("this machine has TensorRT's headers where compilers look for them")
    made = configure(tmp_path / "a")
    assert made.returncode != 0
    said = " ".join(made.stderr.split())
    assert "NvInferRuntime.h isn't found. Clone https://github.com/NVIDIA/TensorRT" in said
    assert "-DTENSORRT_INCLUDE_DIR=.../TensorRT/include" in said
    assert "the Python plugin serves pip installations" in said
    (tmp_path / "NvInferRuntime.h").touch()
    (tmp_path / "cuda.h").touch()
    (tmp_path / "cuda_runtime_api.h").touch()
    made = configure(tmp_path / "b", f"-DTENSORRT_INCLUDE_DIR={tmp_path}", f"-DCUDA_INCLUDE_DIR={tmp_path}")
    assert "Run accelaes-export plugin build -o kernels.cubins" in " ".join(made.stderr.split())
