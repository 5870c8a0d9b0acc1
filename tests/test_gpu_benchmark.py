"""The GPU benchmark on models small enough for a CPU: its stages, its table, and what a stop leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from accelaes_export.backends.aoti import AotiBackend
from benchmarks.gpu.measure import earlier
from benchmarks.gpu.models import BUCKETS, MODELS, recipe, split
from benchmarks.gpu.table import table
from tests.campaigns.size import WHOLE

RESULTS = ("checks.json", "figures.json", "log.txt", "table.md")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu" / "run.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def profiled(name: str, seconds: float, limit: float | None = None) -> dict[str, Any]:
    spread = {"median": seconds, "p10": seconds, "p90": seconds, "minimum": seconds, "count": 1}
    rounds = [0.9 * seconds, seconds, 1.2 * seconds]
    return {"name": name, "plan": "DD", "seconds": spread, "flop_limit": limit, "rounds": rounds}


def report(*policies: dict[str, Any], peers: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {
        "bundle": {"backend": "aoti", "dtype": "fp16", "layers": 24, "tokens": 4096, "text_tokens": 333, "rows": 2},
        "machine": {"cpu": "a CPU", "threads": 1, "versions": {"torch": "2.11.0"}, "gpu": {"name": "a GPU"}},
        "ceilings": {"matmul_flops_per_second": 7e14, "copy_bytes_per_second": 4e12},
        "created": "2026-11-20T00:00:00+00:00",
        "notes": [],
        "policies": policies,
        "peers": peers,
        "absent": [{"name": "cache-dit", "reason": "cache-dit isn't installed;", "remedy": "pip install cache-dit"}],
        "buckets": [],
    }


def test_speed_is_told_over_the_compiled_dense_model_with_the_limit_beside_it() -> None:
    found = table(
        {
            "sd3.policies": report(
                profiled("dense", 2.2, 1.0), profiled("accelaes", 1.25, 2.0), peers=(profiled("torch.compile", 2.0),)
            )
        },
        {"sd3 policies": "done"},
        {},
    )
    assert "| accelaes | `DD` | 1250 | 1250-1250 | 1.60 (1.60-1.60) | 2.00 | 0.80 |" in found
    assert "| dense | `DD` | 2200 | 2200-2200 | 0.91 (0.91-0.91) | 1.00 | 0.91 |" in found
    assert "| cache-dit | not measured: cache-dit isn't installed; pip install cache-dit |" in found
    assert "a GPU; torch 2.11.0; aoti, fp16, 24 blocks" in found and "| sd3 policies | done |" in found


@pytest.mark.parametrize("model", MODELS)
def test_models_are_the_recipes_at_full_size_unless_they_are_cut_down(model: str) -> None:
    whole, quarter = recipe(model, tiny=False, depth=1.0), recipe(model, tiny=False, depth=0.25)
    assert whole.buckets == BUCKETS and whole.dtype != "fp32"
    assert whole.architecture() | {"num_layers": 0, "num_single_layers": 0} == quarter.architecture() | {
        "num_layers": 0,
        "num_single_layers": 0,
    }
    assert quarter.architecture()["num_layers"] == round(whole.architecture()["num_layers"] / 4)


def test_whether_an_engine_is_right_comes_before_how_fast_it_is() -> None:
    parity = {"bucket": 512, "reference": "eager focus step", "max_rel": 0.07, "norm_rel": 0.004, "passed": True}
    replays = [{"n": 512, "captures": 1, "replays": 4}]
    checks = {"device": "cuda:0", "parity": [parity], "replays": replays, "wrong": ["n = 512, call 3: other outputs"]}
    found = table({"flux-dev@0.25.policies": report(profiled("dense", 1, 1.0))}, {}, {"sd3": checks}, "abc1234+")
    assert found.startswith("Commit abc1234+\n")
    assert "| sd3 | cuda:0 | 512 | eager focus step | 7.0e-02 | 4.0e-03 | passed |" in found
    assert "| sd3 | cuda:0 | 512 | plain calls, bit for bit | | | 1 graph, 4 replays |" in found
    assert "| WRONG: n = 512, call 3: other outputs |" in found
    assert found.index("WRONG") < found.index("## flux-dev@0.25, policies")


def test_models_are_named_with_the_share_of_their_blocks() -> None:
    assert (split("sd3"), split("flux-dev@0.25")) == (("sd3", 1.0), ("flux-dev", 0.25))
    for wrong in ("sd4", "sd3@0", "sd3@2", "sd3@x"):
        with pytest.raises(ValueError):
            split(wrong)


@pytest.mark.thorough
@pytest.mark.skipif(not AotiBackend().availability().can_build, reason="there is no C++ compiler")
def test_every_stage_of_a_model_works_and_is_in_the_table(tmp_path: Path) -> None:
    few = ("--tiny", "--models", "sd3", "--rounds", 1, "--steps", 8, "--output", tmp_path / "out")
    done = run(*few, "--sets", "policies", "--work", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    for stage in ("build", "check", "policies"):
        assert f"| sd3 {stage} | done |" in done.stdout
    assert "| torch.compile | `DDDDDDDD` |" in done.stdout and "| accelaes | `DDDDDD" in done.stdout
    assert "| sd3 | cpu | 64 | diffusers |" in done.stdout and "WRONG" not in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list(RESULTS)
    figures = json.loads((tmp_path / "out/figures.json").read_text())["reports"]["sd3.policies"]
    assert [bucket["n"] for bucket in figures["buckets"]] == [8, 16, 24, 32, 40, 48, 56, 64]
    assert earlier(tmp_path / "work", "sd3").buckets[0].n == 8, "so that other sets needn't measure the device again"
    assert earlier(tmp_path / "work", "flux-dev") is None
    assert (tmp_path / "work/bundles/sd3/manifest.json").is_file()


def test_a_stop_leaves_what_was_done_and_says_what_was_not(tmp_path: Path) -> None:
    stopped = run("--tiny", "--models", "sd3,flux-dev", "--seconds", 2, "--output", tmp_path)
    assert stopped.returncode == 1
    assert "| sd3 build | stopped: its time was up |" in stopped.stdout
    assert "| flux-dev policies | not run: " in stopped.stdout
    assert json.loads((tmp_path / "figures.json").read_text())["reports"] == {}


@pytest.mark.skipif(not AotiBackend().availability().can_build, reason="there is no C++ compiler")
def test_killed_at_any_moment_it_leaves_whole_results_and_no_process(tmp_path: Path) -> None:
    moments = (0.3, 1.0, 2.0, 4.0, 6.0, 9.0, 12.0, 16.0, 20.0, 24.0) if WHOLE else (0.3, 4.0, 9.0)
    for k, seconds in enumerate(moments):
        output, work = tmp_path / f"out{k}", tmp_path / f"work{k}"
        options = ("--tiny", "--models", "sd3", "--rounds", 2, "--steps", 4, "--output", output, "--work", work)
        command = [sys.executable, str(SCRIPT), *map(str, options)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM if k % 3 == 0 else signal.SIGKILL)
        process.wait(30)
        last = time.monotonic() + 15
        while (left := of_folder(work)) and time.monotonic() < last:
            time.sleep(0.1)
        assert not left, f"alive after {seconds} s: {left}"
        for path in output.glob("[!.]*.json"):
            json.loads(path.read_text())
        assert {path.name for path in output.glob("[!.]*")} <= set(RESULTS)
        shutil.rmtree(work, ignore_errors=True)


def of_folder(work: Path) -> list[str]:
    """Command lines of living processes that name a folder; their own descendants name none, but end with them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(work) in line:
                    found.append(line[:200])
    return found


def test_a_model_that_is_none_of_the_three_is_refused(tmp_path: Path) -> None:
    for wrong in ("sd4", "sd3@7", ","):
        refused = run("--models", wrong, "--output", tmp_path)
        assert refused.returncode == 2
    assert "name some of sd3, lumina-next, flux-dev" in run("--models", "sd4", "--output", tmp_path).stderr
