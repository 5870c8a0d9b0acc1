"""The C++ compiler and CUDA toolkit that packages are compiled with: found where they usually are, tried, and named.

torch takes the toolkit to be where `nvcc` is, which may be a wrapper somewhere else, and links with -lcuda, which needs
a libcuda.so where a driver installs libcuda.so.1 alone. Both are found here and tried on three lines before a build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from accelaes_export.errors import InputError

_PROBE = """#include <cuda.h>
#include <cuda_runtime_api.h>
int main() { return cuInit(0) == CUDA_SUCCESS ? 0 : 1; }
"""
_HEADERS = ("cuda.h", "cuda_runtime_api.h")
_DRIVER_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib")
_TELLING = re.compile(r"error|cannot find|undefined reference|no such file|killed", re.IGNORECASE)
_SECONDS = 120
_PLAIN = (Path("/tmp"), Path("/var/tmp"))


def compiler() -> str:
    """The C++ compiler Inductor will call."""
    return os.environ.get("CXX", "g++")


@contextmanager
def folders_without_spaces() -> Iterator[None]:
    """Inside, Inductor works in folders the C++ compiler can be told of: its command lines take no spaces in names.

    Raises:
        InputError: temporary files go to a folder with a space in its name, and there is no other.
    """
    from torch._inductor import codecache
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    own = (cache_dir(), default_cache_dir(), codecache._HEADER_DIR)
    if not any(character.isspace() for name in own for character in name):
        yield
        return
    plain = next((place for place in _PLAIN if place.is_dir() and os.access(place, os.W_OK)), None)
    if plain is None:
        raise InputError(
            f"Temporary files go to {tempfile.gettempdir()!r}, and the C++ compiler can't be told of a folder with a "
            "space in its name; set TMPDIR to another."
        )
    variables = {name: os.environ.get(name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TMPDIR")}
    before, headers = tempfile.tempdir, codecache._HEADER_DIR
    with tempfile.TemporaryDirectory(prefix="accelaes-", dir=plain) as folder:
        os.environ.update(TORCHINDUCTOR_CACHE_DIR=folder, TMPDIR=folder)
        tempfile.tempdir, codecache._HEADER_DIR = folder, str(Path(folder) / "headers")
        try:
            yield
        finally:
            tempfile.tempdir, codecache._HEADER_DIR = before, headers
            for name, value in variables.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@dataclass(frozen=True)
class CudaToolchain:
    """What linking a package for GPUs takes.

    Attributes:
        home: the toolkit's folder, whose include/ has CUDA's headers; None: there is none.
        driver: the driver's library libcuda.so, or libcuda.so.1 where only that is there; None: there is none.
    """

    home: Path | None
    driver: Path | None

    @classmethod
    def found(cls) -> CudaToolchain:
        """This machine's, looked for in all the usual places."""
        home = next((folder for folder in _homes() if _has_headers(folder)), None)
        return cls(home, next((path for path in _drivers(home) if path.is_file()), None))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, torch's compilations find the toolkit, and the linker the driver's library."""
        from torch.utils import cpp_extension

        known = cpp_extension.CUDA_HOME
        with tempfile.TemporaryDirectory(prefix="accelaes-cuda-") as folder:
            changed = self._environment(Path(folder))
            before = {name: os.environ.get(name) for name in changed}
            os.environ.update(changed)
            cpp_extension.CUDA_HOME = known if self.home is None else str(self.home)
            try:
                yield
            finally:
                cpp_extension.CUDA_HOME = known
                for name, value in before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value

    def _environment(self, folder: Path) -> dict[str, str]:
        """Variables for torch and the linker; `folder` is for the link by which it finds the driver."""
        changed = {} if self.home is None else {"CUDA_HOME": str(self.home)}
        if self.driver is not None:
            link = folder / "libcuda.so"
            link.symlink_to(self.driver)
            changed["LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("LIBRARY_PATH")]))
        return changed

    def why_not(self) -> str:
        """What a package for GPUs can't be compiled or linked for; "" where a program of three lines can."""
        if self.home is None:
            return (
                "CUDA's headers (cuda.h) are in none of CUDA_HOME, CUDA_PATH, /usr/local/cuda*, beside nvcc, and "
                "Python's packages"
            )
        if self.driver is None:
            return "the NVIDIA driver's library (libcuda.so or libcuda.so.1) isn't on this machine"
        with tempfile.TemporaryDirectory(prefix="accelaes-cuda-") as name:
            folder = Path(name)
            (folder / "probe.cpp").write_text(_PROBE, encoding="ascii")
            environment = {**os.environ, **self._environment(folder)}
            command = [compiler(), str(folder / "probe.cpp"), f"-I{self.home / 'include'}", "-lcuda"]
            # The driver may be newer or older than what it is linked with here: only -lcuda itself is tried.
            command += ["-Wl,--unresolved-symbols=ignore-in-shared-libs", "-o", str(folder / "probe")]
            try:
                tried = subprocess.run(
                    command, capture_output=True, text=True, env=environment, timeout=_SECONDS, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"{compiler()} doesn't work: {error}"
        return "" if tried.returncode == 0 else what_failed(tried.stderr or tried.stdout)


def what_failed(output: str, lines: int = 8) -> str:
    """The lines of a compiler's or linker's output that say what is wrong, in their own words."""
    said = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in said if _TELLING.search(line)] or said
    return "\n".join(dict.fromkeys(telling[:lines])) or "it said nothing"


def _homes() -> Iterator[Path]:
    """Where a toolkit may be, the likeliest first."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    nvcc = shutil.which("nvcc")
    if nvcc is not None:  # as it is called, and where it really is
        yield from (Path(nvcc).parent.parent, Path(nvcc).resolve().parent.parent)
    yield Path("/usr/local/cuda")
    yield from sorted(Path("/usr/local").glob("cuda-*"), reverse=True)
    yield Path("/opt/cuda")
    if "CONDA_PREFIX" in os.environ:
        yield from (Path(os.environ["CONDA_PREFIX"]), Path(os.environ["CONDA_PREFIX"]) / "targets/x86_64-linux")
    for site in _python_folders():  # nvidia-cuda-runtime and its like
        yield from sorted(site.glob("nvidia/cu[0-9]*"), reverse=True)
        yield site / "nvidia/cuda_runtime"
    yield Path("/usr")


def _python_folders() -> list[Path]:
    return [Path(folder) for folder in sys.path if folder]


def _has_headers(home: Path) -> bool:
    return all((home / "include" / name).is_file() for name in _HEADERS)


def _drivers(home: Path | None) -> Iterator[Path]:
    """Where the driver's library may be; a toolkit's stub will do to link with."""
    named = [os.environ.get(variable, "") for variable in ("LIBRARY_PATH", "LD_LIBRARY_PATH")]
    listed = [folder for value in named for folder in value.split(os.pathsep) if folder]
    folders = [Path(folder) for folder in (*listed, *_DRIVER_FOLDERS)]
    folders += sorted(Path("/usr/local/nvidia").glob("lib*"))
    for folder in folders:
        yield from (folder / "libcuda.so", folder / "libcuda.so.1")
    yield from _known_to_the_loader()
    if home is not None:
        for place in ("lib64/stubs", "lib/stubs", "targets/x86_64-linux/lib/stubs"):
            yield home / place / "libcuda.so"


def _known_to_the_loader() -> Iterator[Path]:
    """What ldconfig lists."""
    program = shutil.which("ldconfig") or "/sbin/ldconfig"
    try:
        listed = subprocess.run([program, "-p"], capture_output=True, text=True, timeout=_SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in listed.splitlines():
        name, _, path = line.strip().partition(" => ")
        if name.startswith("libcuda.so") and path:
            yield Path(path)
