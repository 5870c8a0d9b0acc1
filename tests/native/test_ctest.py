"""The native runtime's own tests: golden trajectories, threads, the ABI; and what it writes, read by Python."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from accelaes_export.bundle.reading import Bundle
from tests.campaigns.size import attempts
from tests.native import golden
from tests.native.building import SOURCES, ctest, golden_program
from tests.native.reference import setting

pytestmark = pytest.mark.xdist_group("native")


@pytest.fixture(scope="module")
def trajectories(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings by chance, carried out by Python: as many as seconds allow; 100 in test_sanitized.py."""
    folder = tmp_path_factory.mktemp("golden")
    assert golden.write_all(bundle, folder, attempts(100)) > 3
    return folder


def test_its_own_tests_pass(library: Path, bundle: Bundle, trajectories: Path) -> None:
    """Python's trajectories among them, to 1e-4, with every focus token."""
    said = ctest(library.parent, bundle.path, trajectories)
    assert all(f" {name} " in said for name in ("golden", "threads", "bench")), said


def test_what_it_writes_is_pythons(library: Path, bundle: Bundle, trajectories: Path) -> None:
    assert golden_program(library, "write", bundle.path, trajectories).returncode == 0
    assert golden.furthest_apart(trajectories) < golden.ALLOWED


@pytest.mark.parametrize(("name", "apart", "said"), [("latents", 0.1, "latents apart"), ("focus", 1, "focus tokens")])
def test_what_is_apart_is_found(
    library: Path, bundle: Bundle, tmp_path: Path, name: str, apart: float, said: str
) -> None:
    path = tmp_path / "other.safetensors"
    golden.write(bundle, setting(bundle, bundle.preset("drift:budget=12"), "DDDDa", seed=1), path)
    with safe_open(path, "np") as file:
        described = file.metadata()
    arrays = load_file(path)
    arrays[f"step.4.{name}"] = arrays[f"step.4.{name}"] + np.array(apart, arrays[f"step.4.{name}"].dtype)
    save_file(arrays, path, described)
    done = golden_program(library, "check", bundle.path, tmp_path)
    assert done.returncode == 1 and f"step 4: {said}" in done.stderr.replace("other focus", "focus")


def test_the_abis_record_names_no_folder_of_whoever_made_it() -> None:
    assert re.findall(r" path='([^']*)'", (SOURCES / "abi" / "0.1.abi").read_text()) == ["src/api.cpp"]
