"""The figures of merit of benchmarks/policies.py, its tables and its pictures, on errors made by hand."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import accelaes_export as ax
from accelaes_export.policies import AccelAes
from benchmarks import policies, shapes_runs
from benchmarks.policies import Work, key, summary
from benchmarks.policy_cases import BUCKETS, CASES, CURVE, CURVE_THETA, DENSE, FINE_BUCKETS, HALVES, TIMED
from benchmarks.policy_chart import MARKS, chart
from benchmarks.policy_pictures import AMPLIFIED, GAP, LINE, SHOWN, SIDE, heads_of, sheet
from benchmarks.policy_tables import tables
from benchmarks.resampling import psnr

ROOT = Path(__file__).parents[1]

PROMPTS = 12
DRIFT = "drift, budget 12"


def error_of(steps):
    """A dense run's: falls by 1 dB a step, from .01 at no step."""
    return 0.01 * 10 ** (-steps / 10)


def figures(error, cost):
    """One seed; half of the prompts have half the error and the others one and a half times as much."""
    errors = error * np.where(np.arange(PROMPTS) % 2, 0.5, 1.5)[None]
    objects = np.full((1, PROMPTS), 2.0)
    return {
        "token_steps": np.float64(cost), "flop_cost": np.float64(cost + 1), "exact": errors, "dense": 2 * errors,
        "objects": objects, "right": objects - 0.5,
    }  # fmt: skip


@pytest.fixture
def found():
    made = {label: figures(error_of(CASES[label].steps), CASES[label].steps) for label in CURVE}
    made |= {label: figures(error_of(1.5 * CASES[label].steps), CASES[label].steps) for label in CURVE_THETA}
    return made | {DRIFT: figures(error_of(27), 12)}


def test_step_equivalence_is_dense_steps_of_equal_error_over_the_cost(found):
    rows = {row["case"]: row for row in summary(found, draws=20)}
    assert all(rows[label]["k"]["value"] == pytest.approx(1) for label in CURVE)
    assert rows[DRIFT]["k"]["value"] == pytest.approx(27 / 12)
    assert rows[DRIFT]["k_theta"]["value"] == pytest.approx(18 / 12, rel=1e-3)
    assert rows["dense with θ, 12 steps"]["k"]["value"] == pytest.approx(1.5)
    assert rows["dense with θ, 12 steps"]["k_theta"]["value"] == pytest.approx(1)


def test_errors_are_averaged_before_they_become_decibels_and_resampled_by_prompt(found):
    row = next(row for row in summary(found, draws=200) if row["case"] == DRIFT)
    expected = -10 * np.log10(error_of(27))
    assert row["psnr_to_exact"]["value"] == pytest.approx(expected)
    assert row["psnr_to_dense"]["value"] == pytest.approx(expected - 10 * np.log10(2))
    assert expected - 3 < row["psnr_to_exact"]["low"] < expected < row["psnr_to_exact"]["high"] < expected + 3
    assert row["k"]["high"] - row["k"]["low"] < 1e-6, "the same prompts for curve and case: harder ones are so for both"
    assert row["right"]["value"] == 0.75
    assert (row["token_steps"], row["flop_cost"]) == (12, 13)
    assert psnr(np.zeros(3)) == 120


def test_tables_hold_every_case_in_its_group(found):
    text = tables({"prompts": PROMPTS, "seeds": [1], "cases": summary(found, draws=5)})
    assert (
        text.index("### Plain dense steps") < text.index("| dense, 36 steps | 36 | 36 |") < text.index("### Policies")
    )
    assert f"| {DRIFT} | 28 | 12 | 47.0 (" in text
    assert f"| {DRIFT} | `{CASES[DRIFT].policy.plan(28, (0.25, 0.5, 0.75))}` |" in text


def test_no_two_cases_are_the_same_run_under_two_names():
    runs = [(case.policy, case.steps, case.ranges) for case in CASES.values()]
    assert all(run not in runs[:i] for i, run in enumerate(runs))
    assert len({key(case) for case in CASES.values()}) == len(CASES)


def test_chunks_of_another_bundle_have_another_key_and_the_label_and_group_none():
    case = CASES["accelaes, p = .5"]
    elsewhere = replace(case, buckets=FINE_BUCKETS)
    assert elsewhere.policy.plan(28, FINE_BUCKETS).cost == case.policy.plan(28, BUCKETS).cost
    without = replace(case, ranges=HALVES)
    assert len({key(c) for c in (case, elsewhere, replace(elsewhere, buckets=(0.5,)), without)}) == 4
    assert key(replace(case, group="elsewhere")) == key(case)


def test_every_case_has_a_plan_on_its_own_buckets_and_skip_ratios_run_from_3_to_7_tenths():
    for case in CASES.values():
        assert len(case.policy.plan(case.steps, case.buckets, case.shares)) == case.steps
    ratios = {case.policy.skip_ratio for case in CASES.values() if isinstance(case.policy, AccelAes)}
    assert {0.3, 0.4, 0.5, 0.6, 0.7} <= ratios


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A work folder whose bundles aren't built but noted; the folders are there afterwards."""
    built = []

    def build(**given):
        built.append(given)
        given["output"].mkdir()
        return f"built {given['output'].name}"

    monkeypatch.setattr(ax, "build", build)
    monkeypatch.setattr(ax, "open", lambda folder: f"opened {folder.name}")
    return SimpleNamespace(folder=tmp_path, built=built, made=Work(tmp_path))


def test_each_bundle_is_built_once_beside_the_others_and_opened_from_then_on(work):
    finer, halved = replace(DENSE, buckets=FINE_BUCKETS), replace(DENSE, ranges=HALVES)
    first, fine, single, ranged = (
        work.made.bundle(),
        work.made.bundle(finer),
        work.made.bundle(batch=1),
        work.made.bundle(halved),
    )
    assert (first, single, ranged) == ("built bundle", "built bundle-batch-1", "built bundle-without-0-3-3-6")
    assert work.made.bundle(finer) == fine
    assert [(given["buckets"], given["block_ranges"], given["batch"]) for given in work.built] == [
        (BUCKETS, (), policies.CHUNK), (FINE_BUCKETS, (), policies.CHUNK), (BUCKETS, (), 1),
        (BUCKETS, HALVES, policies.CHUNK),
    ]  # fmt: skip
    assert Work(work.folder).bundle(finer) == fine.replace("built", "opened")
    assert len(work.built) == 4


def test_times_are_ratios_within_a_round_beside_those_of_cost_and_keep_the_other_figures(work, monkeypatch, capsys):
    """Every second round all runs take twice as long, which ratios within a round don't see."""
    output = work.folder / "figures.json"
    output.write_text('{"kept": 1}', encoding="utf-8")
    runs = []
    flops = {36: 40.0, 72: 60.0, 108: 80.0, 144: 100.0}
    geometry = SimpleNamespace(bucket_flops=flops, range_flops=(20.0, 20.0))
    manifest = SimpleNamespace(geometry=geometry)
    monkeypatch.setattr(ax, "open", lambda folder: SimpleNamespace(manifest=manifest))
    monkeypatch.setattr(ax, "build", lambda **given: ax.open(given["output"]))

    class Pipe:
        def set_progress_bar_config(self, **_):
            pass

        @property
        def transformer(self):
            return SimpleNamespace(report=lambda: runs[-1])

    def accelerate(pipe, bundle, policy):
        pipe.policy = policy

    def sample(pipe, prompts, steps, bundle):
        plan = pipe.policy.plan(steps, BUCKETS, (1 / 6, 1 / 6))
        cost = sum(step.fraction for step in plan)
        steps = [SimpleNamespace(n=round(144 * step.fraction), left_out=step.left_out, kind=step.kind) for step in plan]
        round_number = len(runs) // len(TIMED)
        runs.append(
            SimpleNamespace(plan=plan, cost=cost, steps=steps, seconds=(1 + round_number % 2) * (cost + 2) / 1e3)
        )

    monkeypatch.setattr(ax, "accelerate", accelerate)
    monkeypatch.setattr(shapes_runs, "sample", sample)
    monkeypatch.setattr(shapes_runs, "load_pipeline", lambda bundle: Pipe())
    given = f"policies --output {output} --work {work.folder} --times --rounds 4"
    monkeypatch.setattr(sys, "argv", given.split())
    policies.main()
    figures = json.loads(output.read_text(encoding="utf-8"))
    assert figures["kept"] == 1
    assert figures["times"]["machine"]["cpu"]
    rows = {row["policy"]: row for row in figures["times"]["rows"]}
    assert list(rows) == list(TIMED)
    drift = rows["drift, budget 12"]
    assert drift["token_steps"] == 12
    assert drift["dense_over_this"] == pytest.approx({"median": 30 / 14, "p10": 30 / 14, "p90": 30 / 14})
    assert drift["milliseconds"]["p10"] < drift["milliseconds"]["p90"]
    printed = capsys.readouterr().out
    assert "in each of 4 rounds" in printed
    halves = drift["plan"].count("b")
    by_flops = 28 / (drift["plan"].count("D") + 0.6 * halves)
    assert f"| {DRIFT} | 28 | 12 | 21 (14-28) | 2.14 (2.14-2.14) | 2.33 | {by_flops:.2f} |" in printed
    assert "| dense, 28 steps | 28 | 28 | 45 (30-60) | 1 | 1.00 | 1.00 |" in printed


def test_times_come_after_the_tables_of_quality_and_neither_needs_the_other(found):
    quality = {"prompts": PROMPTS, "seeds": [1], "cases": summary(found, draws=5)}
    rate = {"median": 1.0, "p10": 1.0, "p90": 1.0}
    row = {"policy": "dense, 28 steps", "plan": "D" * 28, "token_steps": 28.0, "milliseconds": rate}
    row |= {"dense_over_this": rate, "flop_limit": 1.0}
    machine = {"cpu": "a chip", "threads": 2, "versions": {"onnxruntime": "1.2"}, "date": "2026-01-01"}
    times = {"times": {"machine": machine, "rounds": 3, "rows": [row]}}
    assert tables(quality | times) == f"{tables(quality)}\n\n{tables(times)}"
    assert "a chip, 2 threads, ONNX Runtime 1.2, 2026-01-01" in tables(times)


def test_what_is_timed_and_shown_are_cases_with_dense_steps_first():
    assert TIMED[0] == SHOWN[0] == next(label for label, case in CASES.items() if case is DENSE)
    assert {*TIMED, *SHOWN} <= set(CASES)
    assert len({CASES[label].policy.name for label in TIMED}) >= 6


def test_the_chart_has_a_mark_for_every_case_at_its_cost_and_equivalence(found):
    other = "accelaes, p = .5"
    found |= {"drift, budget 8": figures(error_of(16), 8), other: figures(error_of(14), 14)}
    drawn = chart({"prompts": PROMPTS, "seeds": [1, 2], "cases": summary(found, draws=5)})
    root = ElementTree.fromstring(drawn)
    titled = {mark.findtext("{*}title"): mark for mark in root.iter() if mark.find("{*}title") is not None}
    assert set(titled) == {
        f"{DRIFT}: cost 12, k 2.25", "drift, budget 8: cost 8, k 2.00", f"{other}: cost 14, k 1.00"
    }  # fmt: skip
    circle, eight = (titled[label] for label in (f"{DRIFT}: cost 12, k 2.25", "drift, budget 8: cost 8, k 2.00"))
    (x12, y12), (x8, y8) = ((float(mark.get("cx")), float(mark.get("cy"))) for mark in (circle, eight))
    assert x12 > x8
    assert y12 < y8, "better is higher up"
    line = [line for line in root.findall("{*}line") if line.get("stroke-dasharray")]
    assert len(line) == 1
    corners = re.findall(r"[\d.]+,([\d.]+)", titled[f"{other}: cost 14, k 1.00"].get("points"))
    middle = (min(map(float, corners)) + max(map(float, corners))) / 2
    assert middle == pytest.approx(float(line[0].get("y1")), abs=0.2), "k = 1 lies on the line of plain dense steps"
    assert f"{x8:.1f},{y8:.1f} {x12:.1f},{y12:.1f}" in root.find("{*}polyline").get("points")
    assert f"{PROMPTS} prompts × 2 noises" in drawn
    legend = [text.text for text in root.findall("{*}text")]
    assert "drift" in legend
    assert "ras" not in legend, "only what is in the figures"


def test_policies_in_the_chart_differ_in_shape_or_filling_and_none_lacks_a_mark():
    assert {case.policy.name for case in CASES.values() if case.group == "policies"} <= set(MARKS)
    assert len({(mark.corners, mark.filled) for mark in MARKS.values()}) == len(MARKS)


def test_the_chart_in_the_quality_page_is_of_the_figures_beside_it():
    stored = json.loads((ROOT / "benchmarks/results/policies.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/images/policies-k.svg").read_text(encoding="utf-8") == chart(stored)


def test_the_sheet_shows_pictures_over_their_amplified_differences():
    exact = np.full((2, 48, 48, 3), 0.5, dtype=np.float32)
    near, far = exact.copy(), exact.copy()
    near[1, :24] += 0.25 / AMPLIFIED
    far[:, 24:] = 1.0
    page = sheet(["one", "two"], exact, {"near": near, "far": far}, {"near": ["a"], "far": ["b", "c"]})
    pixels = np.asarray(page)
    column, top, row = SIDE + GAP, 2 * GAP + 2 * LINE, 2 * SIDE + 2 * LINE + 2 + 2 * GAP
    assert page.size == (GAP + 3 * column, top + 2 * row)

    def at(number, place, y, half):
        """Middle of the upper or lower half of the picture, or of the difference, of a row and column."""
        return pixels[top + number * row + LINE + y + SIDE * (1 + 2 * half) // 4, GAP + place * column + SIDE // 2]

    difference = SIDE + 2
    assert at(0, 0, 0, 0).tolist() == [128] * 3
    assert at(1, 1, difference, 0).tolist() == [191] * 3, "a quarter of the way to black"
    assert at(1, 1, difference, 1).tolist() == at(0, 1, difference, 0).tolist() == [255] * 3
    assert at(0, 2, 0, 1).tolist() == [255] * 3
    assert at(0, 2, difference, 1).tolist() == [0] * 3, "and no blacker"


def test_columns_are_headed_by_what_the_benchmark_found(found):
    heads = heads_of({"cases": summary(found, draws=5)}, [DRIFT, "dense, 28 steps"])
    assert heads[DRIFT] == ("drift", "budget 12", "cost 12", "47.0 dB overall")
    with pytest.raises(KeyError):
        heads_of({"cases": []}, [DRIFT])


def test_the_sheet_in_the_quality_page_has_a_column_for_every_case_and_is_small():
    path = ROOT / "docs/images/policies.png"
    assert path.stat().st_size < 400_000
    with Image.open(path) as page:
        assert page.width == GAP + (len(SHOWN) + 1) * (SIDE + GAP)
