"""Engines of 16 bits natively: their tensors are converted at the engine's edge, and what a run knows stays fp32.

Minutes: make test-native.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from accelaes_export.building.builder import build as build_bundle
from accelaes_export.bundle.reading import Bundle
from tests.native import golden
from tests.native.building import golden_program
from tests.runtime.complete_bundle import DrawsNatively

pytestmark = [pytest.mark.native, pytest.mark.xdist_group("half")]
# Python rounds what a step predicts to the engine's type, guidance and all; here it stays fp32.
WITHIN = 2e-3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build_bundle(
        model="shapes",
        dtype="fp16",
        output=tmp_path_factory.mktemp("half") / "bundle",
        presets=("dense", "accelaes", "drift:budget=12"),
        components="all",
    )


def test_trajectories_are_pythons_and_focus_tokens_the_same(library: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Drift's scores are changes of predictions: where two are nearly equal, a rounding chooses the other token."""
    presets = ("dense", "accelaes")
    golden.write_all(bundle, tmp_path / "golden", (random.Random(k) for k in range(20)), presets)
    done = golden_program(library, "check", bundle.path, tmp_path / "golden", "--within", str(WITHIN))
    assert done.returncode == 0, done.stderr


class TestPictures(DrawsNatively):
    asked_for = "an intricate red star on the left, plain blue background"
