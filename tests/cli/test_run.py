"""`run` takes what isn't given from the bundle, shows the plan first, and afterwards what the picture took."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from accelaes_export.bundle.reading import Bundle
from accelaes_export.policies import RAS, AccelAes, Drift, Plan, PolicyWithPlan, StepKind
from accelaes_export.policies.drift_plans import DriftSchedule
from accelaes_export.policies.words import WordWeights
from accelaes_export.runtime.report import RunReport, StepRecord
from tests.cli.conftest import Command
from tests.fake_bundle import fake_manifest, write_fake_bundle


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What generate was asked for; it answers with a black picture and a report of two steps."""
    asked: dict[str, Any] = {}
    plan = Plan("D.b", (0.25, 0.5))
    steps = [StepRecord(0, StepKind.DENSE, 16, 0.020), StepRecord(1, StepKind.SKIP, 0, 0.001)]
    words = WordWeights("a red star", ("red", "star"), ((2, 5), (6, 10)), (0.25, 1.0), "lexical", False)
    steps.append(StepRecord(2, StepKind.SPARSE, 8, 0.012))
    report = RunReport(plan, 16, steps, (words,), focus_index=torch.tensor([[3, 5]]))
    asked["report"] = report

    def generate(bundle: Bundle, prompt: str, **options: Any) -> SimpleNamespace:
        asked.update(options, prompt=prompt)
        options["on_step"](27, 28)
        return SimpleNamespace(frames=(Image.new("RGB", (16, 16)),), report=report, cut=asked.get("cut", ""))

    def load_pipeline(bundle: Bundle, checkpoint: str | None) -> str:
        return f"pipeline of {checkpoint}"

    library = ModuleType("accelaes_export.runtime.generate")
    library.generate = generate  # type: ignore[attr-defined]
    library.load_pipeline = load_pipeline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, library.__name__, library)
    return asked


def test_takes_what_is_not_given_from_the_bundle(command: Command, bundle: Bundle, asked: dict[str, Any]) -> None:
    result = command("run", bundle.path, "--prompt", "a red star")
    assert result.exit_code == 0, result.stderr
    assert (asked["prompt"], asked["steps"], asked["guidance"], asked["seed"]) == ("a red star", 28, 4.5, 0)
    assert asked["policy"] == AccelAes()
    assert Path("out.png").is_file()


def test_hands_policy_options_on(command: Command, bundle: Bundle, asked: dict[str, Any]) -> None:
    options = "--skip-ratio 0.75 --mask-step 3 --warmup 2 --interval 3 --refresh-every 0 --steps 20 --seed 5"
    result = command("run", bundle.path, "--prompt", "x", "--guidance", "2", *options.split())
    assert result.exit_code == 0, result.stderr
    assert asked["policy"] == AccelAes(skip_ratio=0.75, mask_step=3, warmup=2, interval=3, refresh_every=0)
    assert (asked["steps"], asked["seed"], asked["guidance"]) == (20, 5, 2.0)


def test_a_budget_or_a_plan_brings_its_own_number_of_steps(
    command: Command, bundle: Bundle, asked: dict[str, Any]
) -> None:
    drift = ["run", bundle.path, "--prompt", "x", "--policy", "drift"]
    result = command(*drift, "--budget", "12")
    assert result.exit_code == 0, result.stderr
    assert asked["policy"] == Drift(budget=12)
    assert asked["steps"] == Drift(budget=12).own_steps
    command(*drift, "--budget", "12", "--steps", "20")
    assert asked["steps"] == 20
    result = command(*drift, "--plan", "DDDD.b.D.b..D.b")
    assert (asked["policy"], asked["steps"]) == (PolicyWithPlan(Drift(), "DDDD.b.D.b..D.b"), 15)
    assert "Plan of drift, 15 steps\n" in result.stdout and "DDDD.b.D.b ..D.b" in result.stdout
    command("run", bundle.path, "--prompt", "x", "--policy", "fewer-steps", "--budget", "9")
    assert asked["steps"] == 9


def test_a_budget_takes_the_bundles_own_plan_and_a_few_step_models_own_steps(
    command: Command, tmp_path: Path, asked: dict[str, Any]
) -> None:
    plan = DriftSchedule(symbols="DDDbb.DbD", theta=0.1, trend=0.5, cache_reach=0.0)
    few = {"steps": 4, "policy_options": {"mask_step": 1}, "plan": "DDbD", "plans": {7: plan}}
    defaults = fake_manifest().defaults.model_copy(update=few)
    drift = ["run", write_fake_bundle(tmp_path / "few", defaults=defaults).path, "--prompt", "x", "--policy", "drift"]
    result = command(*drift, "--budget", "7")
    assert "Plan of drift, 9 steps\n" in result.stdout and "DDDbb.DbD" in result.stdout
    assert (asked["steps"], asked["policy"].extrapolation.theta) == (9, 0.1)
    result = command(*drift, "--budget", "3")
    assert "Plan of drift, 4 steps\n" in result.stdout and asked["steps"] == 4
    command(*drift, "--budget", "7", "--steps", "12")
    assert asked["steps"] == 12
    result = command(*drift, "--budget", "0")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "budget is 0.0; give a number from 1 to 1000; there are plans for 7." in result.stderr


def test_any_option_of_a_policy_can_be_given_by_name(command: Command, bundle: Bundle, asked: dict[str, Any]) -> None:
    options = ["metric=norm", "resets=[0.5]", "ramp=true", "ratio=0.5", "order=1", "reach=none", "scope=others"]
    given = [part for option in options for part in ("--policy-option", option)]
    result = command("run", bundle.path, "--prompt", "x", "--policy", "ras", *given)
    assert result.exit_code == 0, result.stderr
    assert asked["policy"] == RAS(metric="norm", resets=(0.5,), ramp=True, order=1, reach=None, scope="others")


def test_says_where_the_data_decides_what_is_skipped(command: Command, bundle: Bundle, asked: dict[str, Any]) -> None:
    result = command("run", bundle.path, "--prompt", "x", "--policy", "teacache")
    assert "Plan of teacache, 28 steps, of which the run skips some" in result.stdout


def test_finds_the_pipeline_in_a_checkpoint_that_moved(command: Command, bundle: Bundle, asked: dict[str, Any]) -> None:
    command("run", bundle.path, "--prompt", "x", "--checkpoint", "moved")
    assert asked["pipe"] == "pipeline of moved"


def test_says_what_was_cut_from_a_long_prompt(command: Command, bundle: Bundle, asked: dict[str, Any]) -> None:
    asked["cut"] = "and a blue ring"
    result = command("run", bundle.path, "--prompt", "a red star and a blue ring")
    assert result.exit_code == 0
    assert "longer than the text window; this was cut: 'and a blue ring'" in result.stderr


def test_a_bundles_default_options_hold_for_its_default_policy_alone(
    command: Command, tmp_path: Path, asked: dict[str, Any]
) -> None:
    defaults = fake_manifest().defaults.model_copy(update={"policy_options": {"mask_step": 3, "warmup": 3}})
    path = write_fake_bundle(tmp_path / "own", defaults=defaults).path
    command("run", path, "--prompt", "x", "--warmup", "4")
    assert asked["policy"] == AccelAes(mask_step=3, warmup=4)
    command("run", path, "--prompt", "x", "--policy", "stepcache")
    assert asked["policy"].warmup == 5


def test_prints_the_plan_then_times_cost_and_words(command: Command, bundle: Bundle, asked: dict[str, Any]) -> None:
    text = command("run", bundle.path, "--prompt", "a red star").stdout
    assert text.index("Plan of accelaes, 28 steps") < text.index("DDDDDD.b.D") < text.index("Step times")
    rows = {line.split()[1]: line.split() for line in text.splitlines() if line.startswith("│")}
    assert {"dense", "sparse", "skip", "all"} <= set(rows)
    assert "12.0" in rows["sparse"] and "33.0" in rows["all"]
    assert "Computed 1.5 of 3 dense steps' tokens (50%)." in text
    assert "star 1.00, red 0.25 (lexical)" in text


def test_writes_picture_mask_and_trace_into_new_folders(
    command: Command, bundle: Bundle, asked: dict[str, Any], tmp_path: Path
) -> None:
    files = ["-o", "a/out.png", "--mask-out", "b/mask.png", "--save-json", "c/trace.json"]
    result = command("run", bundle.path, "--prompt", "x", *files)
    assert result.exit_code == 0, result.stderr
    assert Image.open(tmp_path / "a/out.png").size == (16, 16)
    assert Image.open(tmp_path / "b/mask.png").size == (384, 384)  # enlarged, so that tokens can be seen
    assert json.loads((tmp_path / "c/trace.json").read_text())["plan"] == "D.b"
    assert "Wrote a/out.png, b/mask.png, c/trace.json" in result.stdout


def test_a_picture_of_no_numbers_is_not_written_unless_asked_for(
    command: Command, bundle: Bundle, asked: dict[str, Any]
) -> None:
    asked["report"].nonfinite = {2: 5}
    result = command("run", bundle.path, "--prompt", "x")
    assert result.exit_code == 1 and not Path("out.png").exists()
    assert "At step 2 the engine predicted 5 numbers that are infinite or not a number" in result.stderr
    result = command("run", bundle.path, "--prompt", "x", "--allow-nonfinite")
    assert result.exit_code == 0 and Path("out.png").is_file()


def test_says_what_was_otherwise_than_asked_for(command: Command, bundle: Bundle, asked: dict[str, Any]) -> None:
    asked["report"].notes = ("the scheduler adds noise",)
    assert "Otherwise than asked for: the scheduler adds noise." in command("run", bundle.path, "--prompt", "x").stdout


def test_more_steps_than_noise_levels_are_refused(command: Command, bundle: Bundle, asked: dict[str, Any]) -> None:
    result = command("run", bundle.path, "--prompt", "x", "--steps", "1000000")
    assert result.exit_code == 2 and "1000000 steps were asked for; allowed are up to 1000" in result.stderr
