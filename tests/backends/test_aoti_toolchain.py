"""CUDA's headers and the driver's library are found where they usually are, and tried before a build counts on them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from accelaes_export.backends.aoti import AotiBackend, targets, toolchain
from accelaes_export.backends.aoti import compile as compiling
from accelaes_export.backends.aoti.toolchain import CudaToolchain, what_failed
from accelaes_export.errors import BuildError, MissingComponentError

HEADER = 'extern "C" { int cuInit(unsigned); }\n#define CUDA_SUCCESS 0\n'


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing of CUDA is in the usual places; returns a folder for what a test puts somewhere."""
    for name in ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX", "LIBRARY_PATH", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolchain, "_python_folders", list)
    monkeypatch.setattr(toolchain, "_DRIVER_FOLDERS", (str(tmp_path / "driver"),))
    monkeypatch.setattr(toolchain, "_known_to_the_loader", lambda: iter(()))
    monkeypatch.setattr(toolchain, "_has_headers", _below(tmp_path, toolchain._has_headers))
    return tmp_path


def _below(folder: Path, has):
    return lambda home: folder in home.parents and has(home)


def toolkit(home: Path, header: str = HEADER) -> Path:
    (home / "include").mkdir(parents=True)
    (home / "include/cuda.h").write_text(header)
    (home / "include/cuda_runtime_api.h").write_text("")
    return home


def driver(folder: Path, name: str = "libcuda.so.1") -> Path:
    """A driver's library as it is installed: with the 1 behind its name, and no other."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "cuda.cpp"
    source.write_text('extern "C" int cuInit(unsigned) { return 0; }')
    subprocess.run(["g++", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", source, "-o", folder / name], check=True)
    return folder / name


def wrapper(folder: Path, behind: Path | None = None) -> Path:
    """An nvcc in the path, a link to the toolkit's or a script of its own."""
    folder.mkdir()
    path = folder / "nvcc"
    if behind is None:
        path.write_text("#!/bin/sh\nexec true\n")
        path.chmod(0o755)
    else:
        behind.parent.mkdir(parents=True)
        behind.write_text("#!/bin/sh\n")
        behind.chmod(0o755)
        path.symlink_to(behind)
    return folder


def test_a_driver_without_its_plain_name_links_and_leaves_the_environment_as_it_was(bare, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(bare / "cuda")))
    found = CudaToolchain(bare / "cuda", driver(bare / "driver"))
    assert CudaToolchain.found() == found
    assert found.why_not() == ""
    from torch.utils import cpp_extension

    known = cpp_extension.CUDA_HOME
    program = bare / "main.cpp"
    program.write_text('extern "C" int cuInit(unsigned);\nint main() { return cuInit(0); }')
    command = ["g++", program, "-lcuda", "-o", bare / "main"]
    assert subprocess.run(command, capture_output=True).returncode != 0
    with found.in_use():
        assert cpp_extension.CUDA_HOME == toolchain.os.environ["CUDA_HOME"] == str(bare / "cuda")
        subprocess.run(command, check=True)
    assert "LIBRARY_PATH" not in toolchain.os.environ
    assert cpp_extension.CUDA_HOME == known


def test_an_nvcc_that_only_wraps_another_does_not_hide_the_toolkit(bare, monkeypatch) -> None:
    beside = [bare / "local/cuda-13.0"]
    monkeypatch.setattr(toolchain.Path, "glob", lambda self, pattern: iter(beside if pattern == "cuda-*" else []))
    toolkit(bare / "local/cuda-13.0")
    monkeypatch.setenv("PATH", f"{wrapper(bare / 'bin')}:{toolchain.os.environ['PATH']}")
    assert CudaToolchain.found().home == bare / "local/cuda-13.0"


def test_a_linked_nvcc_leads_to_its_toolkit(bare, monkeypatch) -> None:
    toolkit(bare / "real")
    folder = wrapper(bare / "bin", bare / "real/bin/nvcc")
    monkeypatch.setenv("PATH", f"{folder}:{toolchain.os.environ['PATH']}")
    assert CudaToolchain.found().home == bare / "real"


def test_a_toolkits_stub_will_do_to_link_with(bare) -> None:
    toolkit(bare / "cuda")
    stub = driver(bare / "cuda/lib64/stubs", "libcuda.so")
    assert next(path for path in toolchain._drivers(bare / "cuda") if path.is_file()) == stub
    assert CudaToolchain(bare / "cuda", stub).why_not() == ""


@pytest.mark.parametrize(
    ("header", "library", "said"),
    [
        (None, True, "CUDA's headers (cuda.h) are in none of CUDA_HOME"),
        (HEADER, False, "the NVIDIA driver's library (libcuda.so or libcuda.so.1) isn't on this machine"),
        ("#error wrong toolkit\n", True, "error: #error wrong toolkit"),
    ],
)
def test_what_is_missing_is_said_before_a_build_begins(bare, monkeypatch, header, library, said) -> None:
    if header is not None:
        monkeypatch.setenv("CUDA_HOME", str(toolkit(bare / "cuda", header)))
    if library:
        driver(bare / "driver")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(targets, "gpu_capability", lambda index: "sm90")
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    here = AotiBackend().availability()
    assert not here.can_build and here.can_run
    assert said in here.reason
    with pytest.raises(MissingComponentError, match="for sm90: ") as caught:
        AotiBackend().check("fp16", ("cuda",))
    assert said in str(caught.value)
    AotiBackend().check("fp32", ("cpu",))  # which needs nothing of CUDA


def test_a_failed_compilation_keeps_the_compilers_own_words(tmp_path) -> None:
    from contextlib import nullcontext

    from torch._inductor import exc

    output = "In file included from a.h:1,\n" * 30 + "b.cpp:3:10: fatal error: cuda.h: No such file or directory\n"

    def fail(*_, **__):
        raise exc.CppCompileError(["g++", "b.cpp"], output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch._inductor.aoti_compile_and_package", fail)
        with pytest.raises(BuildError, match="fatal error: cuda.h: No such file or directory"):
            compiling._compile(None, tmp_path / "focus_step.pt2", {}, nullcontext())
    lines = what_failed("note: x\nld: cannot find -lcuda\ncollect2: error: ld returned 1 exit status").splitlines()
    assert lines == ["ld: cannot find -lcuda", "collect2: error: ld returned 1 exit status"]
