"""The figures of benchmarks/tuned.py and its tables, on errors made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from accelaes_export.policies import Coefficients, DriftSchedule
from benchmarks.policy_cases import PolicyCase
from benchmarks.tuned import PLAIN, cases, policy_of, summary, tables

PROMPTS = 12


def figures(steps, cost):
    """Errors that fall by 1 dB a step; half of the prompts have half of them, and the others one and a half times."""
    errors = 0.01 * 10 ** (-steps / 10) * np.where(np.arange(PROMPTS) % 2, 0.5, 1.5)[None]
    objects = np.full((1, PROMPTS), 2.0)
    costs = {"token_steps": np.float64(cost), "flop_cost": np.float64(cost)}
    return costs | {"exact": errors, "objects": objects, "right": objects - 0.5}


def fitted(symbols):
    steps = len(symbols)
    learned = Coefficients(tuple(np.linspace(1, 0, steps + 1).tolist()), 4.5, ((),) * steps)
    return policy_of(DriftSchedule(symbols, 0.3, 1.0, 0.5, learned))


@pytest.fixture
def given():
    dense = {f"dense, fitted, {T} steps": PolicyCase(fitted("D" * T), T, "fitted") for T in (6, 8, 10)}
    return cases(None, None) | dense | {"tuned": PolicyCase(fitted("DDbD"), 4, "tuned")}


def test_k_is_dense_steps_of_equal_error_over_the_cost_plain_and_fitted(given):
    found = {label: figures(case.steps, case.steps) for label, case in given.items() if case.group == "plain"}
    found |= {label: figures(1.5 * case.steps, case.steps) for label, case in given.items() if case.group == "fitted"}
    rows = {row["case"]: row for row in summary(found | {"tuned": figures(13.5, 3.5)}, given, draws=20)}
    assert all(rows[f"dense, {T} steps"]["k"]["value"] == pytest.approx(1) for T in (*PLAIN, 28))
    assert rows["dense, fitted, 8 steps"]["k"]["value"] == pytest.approx(1.5)
    tuned = rows["tuned"]
    assert tuned["k"]["value"] == pytest.approx(13.5 / 3.5)
    assert tuned["k_fitted"]["value"] == pytest.approx(9 / 3.5)
    assert tuned["k"]["high"] - tuned["k"]["low"] < 1e-6, "the same prompts for curve and case"
    assert tuned["psnr"]["value"] == pytest.approx(20 + 13.5)
    assert tuned["worst"]["value"] == pytest.approx(20 + 13.5 - 10 * np.log10(1.5))
    assert tuned["right"]["value"] == 0.75 and tuned["plan"] == "DDbD"
    text = tables({"prompts": PROMPTS, "seeds": [1], "cases": list(rows.values())})
    assert "| tuned | 4 | 3.5 | 33.5 (" in text and "| tuned | `DDbD` |" in text
    assert "12 prompts x 1 noise," in text
