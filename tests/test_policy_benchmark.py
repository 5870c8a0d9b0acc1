"""The figures of merit of benchmarks/policies.py, on errors made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.policies import psnr, summary
from benchmarks.policy_cases import CASES, CURVE, CURVE_THETA
from benchmarks.policy_tables import tables

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
    runs = [(case.policy, case.steps) for case in CASES.values()]
    assert all(run not in runs[:i] for i, run in enumerate(runs))
