"""The native runtime under sanitizers, on ONNX Runtime: nothing is read or written out of place, and no thread races.

Minutes: make test-native. ONNX Runtime itself isn't instrumented.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from accelaes_export.bundle.reading import Bundle
from tests.native import golden
from tests.native.building import ONNXRUNTIME, SOURCES, build, ctest, golden_program

pytestmark = [pytest.mark.native, pytest.mark.xdist_group("native")]

SETTINGS = 100
CALLS = 10_000


@pytest.fixture(scope="module")
def trajectories(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    assert golden.write_all(bundle, folder, (random.Random(k) for k in range(SETTINGS))) == SETTINGS
    return folder


def require_sanitizer(name: str, folder: Path) -> None:
    """Skipped where even an empty program doesn't run with it: kernels may lay memory out as it can't have it."""
    program = folder / f"empty-{name.replace(',', '-')}"
    command = ["g++", f"-fsanitize={name}", "-x", "c++", "-", "-o", str(program)]
    subprocess.run(command, input=b"int main() {}", check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"g++'s {name} sanitizer doesn't run here: {done.stderr.strip()[:200]}")


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the address and undefined-behaviour sanitizers, which end it at the first fault."""
    folder = tmp_path_factory.mktemp("sanitized") / "checked"
    require_sanitizer("address,undefined", folder.parent)
    return build(folder, "-DACCELAES_TESTS=ON", "-DACCELAES_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=Debug")


def test_a_hundred_settings_and_eight_threads_touch_nothing_out_of_place(
    checked: Path, bundle: Bundle, trajectories: Path
) -> None:
    said = ctest(checked.parent, bundle.path, trajectories, "-E", "abi", UBSAN_OPTIONS="halt_on_error=1")
    assert "100% tests passed" in said


def test_a_hundred_settings_written_natively_are_pythons(checked: Path, bundle: Bundle, trajectories: Path) -> None:
    assert golden_program(checked, "write", bundle.path, trajectories).returncode == 0
    assert golden.furthest_apart(trajectories) < golden.ALLOWED


def test_calls_in_any_order_touch_nothing_out_of_place(checked: Path, bundle: Bundle) -> None:
    """The sanitizers' libraries come first, as Python has none of them."""
    named = [f"lib{name}.so" for name in ("asan", "ubsan", "stdc++")]
    found = [subprocess.check_output(["gcc", f"-print-file-name={name}"], text=True).strip() for name in named]
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1",
    }
    command = [sys.executable, "-m", "tests.native.random_calls", checked, bundle.path, ONNXRUNTIME, "1", CALLS]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > CALLS // 10


def test_eight_threads_race_for_nothing(tmp_path: Path, bundle: Bundle, trajectories: Path) -> None:
    require_sanitizer("thread", tmp_path)
    library = build(tmp_path / "threads", "-DACCELAES_TESTS=ON", "-DACCELAES_SANITIZE=thread")
    # Its locks aren't seen, so it seems to unlock what nobody locked.
    options = f"halt_on_error=1 report_mutex_bugs=0 suppressions={SOURCES / 'tests' / 'tsan.suppr'}"
    said = ctest(library.parent, bundle.path, trajectories, "-R", "threads", TSAN_OPTIONS=options)
    assert "100% tests passed" in said
