"""libaccelaes, built once for all workers."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from tests.native.library import Native

SOURCES = Path(__file__).parents[2] / "engines" / "cpp"
ONNXRUNTIME = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))


PARTS = ("src", "include", "engines")
CUDA_ON_CPU = Path(__file__).parent / "cuda_on_cpu"
CUDA = ("-x", "c++", SOURCES / "cuda" / "device.cu", SOURCES / "cuda" / "kernels.cu", CUDA_ON_CPU / "memory.cpp")
"""What libaccelaes_cuda.so is made of where a CPU stands in for a GPU."""


def missing() -> str:
    """What building it takes that isn't here."""
    lacking = [tool for tool in ("cmake", "ninja", "g++", "pkg-config") if shutil.which(tool) is None]
    headers = {"nlohmann/json.hpp": "nlohmann-json3-dev", "utf8proc.h": "libutf8proc-dev", "pcre2.h": "libpcre2-dev"}
    lacking += [package for name, package in headers.items() if not (Path("/usr/include") / name).is_file()]
    return ", ".join(lacking)


def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def build(folder: Path, *options: str, target: str = "all") -> Path:
    """libaccelaes.so in `folder`, beside its engine formats and tests."""
    if missing():
        pytest.skip(f"{missing()} isn't here")
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = ["cmake", "-S", SOURCES, "-B", folder, "-G", "Ninja", *options]
        for command in (configure, ["cmake", "--build", folder, "--target", target]):
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            assert made.returncode == 0, made.stdout + made.stderr
        assert "warning" not in made.stdout, made.stdout
    return folder / "libaccelaes.so"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(shared(tmp_path_factory) / "native", "-DACCELAES_TESTS=ON")


def stand_in(library: Path, *sources: object, strict: bool = False) -> None:
    """Compile a shared object by g++, with the headers that stand in for NVIDIA's."""
    headers = (CUDA_ON_CPU, CUDA_ON_CPU.with_name("tensorrt_on_cpu"), *(SOURCES / part for part in PARTS))
    command = ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden"]
    command += ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"] if strict else []
    command += [word for folder in headers for word in ("-I", str(folder))]
    subprocess.run([*command, *map(str, sources), "-ldl", "-o", str(library)], check=True)


def ctest(folder: Path, bundle: Path, golden: Path, *options: str, **environment: str) -> str:
    """What ctest says of the build in `folder`, all of whose tests passed."""
    given = {"BUNDLE": bundle, "LIBRARY": ONNXRUNTIME, "GOLDEN": golden}
    named = [f"-DACCELAES_TEST_{name}={path}" for name, path in given.items()]
    subprocess.run(["cmake", *named, folder], check=True, capture_output=True)
    command = ["ctest", "--test-dir", folder, "--output-on-failure", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def golden_program(
    library: Path, verb: str, bundle: Path, folder: Path, *options: str, runtime: Path = ONNXRUNTIME, **environment: str
) -> subprocess.CompletedProcess[str]:
    """engines/cpp/tests/golden.cpp on a folder of trajectories."""
    command = [library.parent / "accelaes_golden", verb, bundle, runtime, folder, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.fixture(scope="session")
def native(library: Path) -> Native:
    return Native(library)
