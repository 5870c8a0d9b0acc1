"""libaccelaes, built once for all workers, and a bundle with presets of every kind."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from accelaes_export.bundle.reading import Bundle
from tests.native.library import Native, NativeBundle

SOURCES = Path(__file__).parents[2] / "engines" / "cpp"
REGIONS = "accelaes:spatial_cfg={focus: 5.0, background: 3.0, softness: 1.0}"
PRESETS = (
    "dense",
    "stepcache",
    "accelaes",
    REGIONS,
    "drift:budget=8",
    "drift:budget=12",
    "ras",
    "teacache",
    "easycache",
)
ONNXRUNTIME = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))


def missing() -> str:
    """What building it takes that isn't here."""
    lacking = [tool for tool in ("cmake", "ninja", "g++", "pkg-config") if shutil.which(tool) is None]
    headers = {"nlohmann/json.hpp": "nlohmann-json3-dev", "utf8proc.h": "libutf8proc-dev", "pcre2.h": "libpcre2-dev"}
    lacking += [package for name, package in headers.items() if not (Path("/usr/include") / name).is_file()]
    return ", ".join(lacking)


def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libaccelaes.so, beside its engine format."""
    if missing():
        pytest.skip(f"{missing()} isn't here")
    folder = shared(tmp_path_factory) / "native"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (["cmake", "-S", SOURCES, "-B", folder, "-G", "Ninja"], ["cmake", "--build", folder]):
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            assert made.returncode == 0, made.stdout + made.stderr
        assert "warning" not in made.stdout, made.stdout
    return folder / "libaccelaes.so"


@pytest.fixture(scope="session")
def native(library: Path) -> Native:
    return Native(library)


@pytest.fixture(scope="session")
def bundle(shapes_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped checkpoint with a preset of every kind, and all of its pipeline."""
    from accelaes_export.building.builder import build

    with (shared(tmp_path_factory) / "presets.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build(model="shapes", output=shared(tmp_path_factory) / "presets", presets=PRESETS, components="all")


@pytest.fixture(scope="session")
def opened(native: Native, bundle: Bundle) -> NativeBundle:
    return native.open(bundle.path, library=str(ONNXRUNTIME).encode(), threads=1)
