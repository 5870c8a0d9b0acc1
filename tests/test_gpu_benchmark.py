"""The GPU benchmark on models small enough for a CPU: its stages, its table, and what a stop leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from accelaes_export.backends.aoti import AotiBackend
from benchmarks.gpu.models import BUCKETS, MODELS, recipe
from benchmarks.gpu.table import table

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


@pytest.mark.xdist_group("aoti")
@pytest.mark.skipif(not AotiBackend().availability().can_build, reason="there is no C++ compiler")
def test_every_stage_of_a_model_works_and_is_in_the_table(tmp_path: Path) -> None:
    done = run("--tiny", "--models", "sd3", "--sets", "policies", "--rounds", 1, "--steps", 8, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| sd3 build | done |" in done.stdout and "| sd3 policies | done |" in done.stdout
    assert "| torch.compile | `DDDDDDDD` |" in done.stdout and "| accelaes | `DDDDDD" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    buckets = figures["reports"]["sd3.policies"]["buckets"]
    assert [bucket["n"] for bucket in buckets] == [8, 16, 24, 32, 40, 48, 56, 64]


def test_a_stop_leaves_what_was_done_and_says_what_was_not(tmp_path: Path) -> None:
    stopped = run("--tiny", "--models", "sd3,flux-dev", "--seconds", 1, "--output", tmp_path)
    assert stopped.returncode == 1
    assert "| sd3 build | stopped: the time was up |" in stopped.stdout
    assert "| flux-dev policies | not run: there is no bundle |" in stopped.stdout
    assert json.loads((tmp_path / "figures.json").read_text())["reports"] == {}


def test_a_model_that_is_none_of_the_three_is_refused(tmp_path: Path) -> None:
    refused = run("--models", "sd4", "--output", tmp_path)
    assert refused.returncode == 2 and "name some of sd3, lumina-next, flux-dev" in refused.stderr
