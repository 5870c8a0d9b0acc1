"""The native runtime's CUDA code without a GPU: its kernels on a CPU, where only they may touch the device's memory.

tests/native/cuda_on_cpu stands in for CUDA's runtime; a GPU runs the same program: engines/cpp/tests/device.cpp.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from accelaes_export.bundle.reading import Bundle
from tests.campaigns.size import attempts
from tests.native import golden
from tests.native.building import CUDA, CUDA_ON_CPU, ONNXRUNTIME, build, golden_program, stand_in
from tests.native.library import Native, NativeError

pytestmark = pytest.mark.xdist_group("native")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with libaccelaes_cuda.so, and ONNX Runtime's format for its memory."""
    folder = tmp_path_factory.mktemp("cuda")
    stand_in(folder / "libaccelaes_cuda.so", *CUDA)
    stand_in(folder / "libaccelaes_onnxruntime.so", CUDA_ON_CPU / "format.cpp")
    return folder


def test_its_kernels_do_what_the_cpu_does_bit_for_bit(library: Path, engines: Path) -> None:
    done = subprocess.run(
        [library.parent / "accelaes_device", engines, "1", "60"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "the same, bit for bit\n"), done.stderr


def test_whole_trajectories_on_it_are_pythons(library: Path, engines: Path, bundle: Bundle, tmp_path: Path) -> None:
    count = golden.write_all(bundle, tmp_path / "golden", attempts(100))
    options = ["--device", "cuda", "--engines", str(engines)]
    real = str(library.parent / "libaccelaes_onnxruntime.so")
    done = golden_program(library, "check", bundle.path, tmp_path / "golden", *options, ACCELAES_REAL_FORMAT=real)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.startswith(f"{count} settings, ")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by NVIDIA's compiler."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc isn't here")
    return build(tmp_path_factory.mktemp("nvcc") / "native", "-DACCELAES_CUDA=ON")


def test_it_has_code_for_every_architecture_from_sm_80_to_sm_120(compiled: Path) -> None:
    """As fatbinary_section.h has it: a header of 16 bytes, then pieces that each say their kind, sizes and machine."""
    data, found, at = compiled.with_name("libaccelaes_cuda.so").read_bytes(), set(), -1
    while (at := data.find(struct.pack("<I", 0xBA55ED50), at + 1)) >= 0:
        _, _, header, size = struct.unpack_from("<IHHQ", data, at)
        place, end = at + header, at + header + size
        while place < end:
            kind, _, own, code = struct.unpack_from("<HHIQ", data, place)
            (machine,) = struct.unpack_from("<I", data, place + 28)
            found.add(("ptx" if kind == 1 else "sm", machine))
            place += own + code
    assert found == {*(("sm", machine) for machine in (80, 86, 89, 90, 100, 120)), ("ptx", 120)}


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(compiled: Path, bundle: Bundle) -> None:
    said = "has no CUDA device that can be used .*; install NVIDIA's driver"
    with pytest.raises(NativeError, match=said) as error:
        Native(compiled).open(bundle.path, library=str(ONNXRUNTIME).encode(), device=b"cuda")
    assert error.value.code == 4


@pytest.mark.parametrize("device", [b"gpu", b"cuda:", b"cuda:x", b"cpu:1", b"", b"cuda:0000"])
def test_a_device_that_is_none_is_told(native: Native, bundle: Bundle, device: bytes) -> None:
    with pytest.raises(NativeError, match='options.device is ".*"; give cpu, cuda or cuda:1') as error:
        native.open(bundle.path, library=str(ONNXRUNTIME).encode(), device=device)
    assert error.value.code == 2


def test_a_stream_is_a_gpus(native: Native, bundle: Bundle) -> None:
    with pytest.raises(NativeError, match="options.stream was given, and options.device is a CPU") as error:
        native.open(bundle.path, library=str(ONNXRUNTIME).encode(), stream=1)
    assert error.value.code == 2


def test_a_library_that_was_built_without_it_says_so(native: Native, bundle: Bundle) -> None:
    with pytest.raises(NativeError, match="libaccelaes_cuda.so can't be loaded .* -DACCELAES_CUDA=ON") as error:
        native.open(bundle.path, library=str(ONNXRUNTIME).encode(), device=b"cuda")
    assert error.value.code == 4


def test_memory_is_the_devices(library: Path, engines: Path, native: Native, bundle: Bundle, monkeypatch) -> None:
    """As much of it as the CPU's, and what is looked at on the host."""
    monkeypatch.setenv("ACCELAES_REAL_FORMAT", str(library.parent / "libaccelaes_onnxruntime.so"))
    here = native.open(bundle.path, library=str(ONNXRUNTIME).encode())
    there = native.open(bundle.path, library=str(ONNXRUNTIME).encode(), device=b"cuda", engines=str(engines).encode())
    host, nothing = here.run_bytes(preset=b"drift:budget=12")
    mirrored, device = there.run_bytes(preset=b"drift:budget=12")
    assert (nothing, device) == (0, host) and 0 < mirrored < host / 10
    here.close(), there.close()
