"""A bundle with presets of every kind."""

from __future__ import annotations

import fcntl

import pytest

from accelaes_export.bundle.reading import Bundle
from tests.native.building import ONNXRUNTIME, shared
from tests.native.library import Native, NativeBundle

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
