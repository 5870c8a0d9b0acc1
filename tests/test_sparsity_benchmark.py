"""The figures of benchmarks/sparsity.py and its table, on errors made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from accelaes_export.contract.schedules import ScheduleFile
from accelaes_export.policies import LayerSchedule
from benchmarks.sparsity import PLAIN, cases, summary, tables

PROMPTS = 12


def figures(steps, cost):
    """Errors to 160 steps fall by 1 dB a step; half of the prompts have half of them, the others one and a half."""
    errors = 0.01 * 10 ** (-steps / 10) * np.where(np.arange(PROMPTS) % 2, 0.5, 1.5)[None]
    objects = np.full((1, PROMPTS), 2.0)
    costs = {"token_steps": np.float64(cost), "flop_cost": np.float64(cost + 1)}
    return costs | {"exact": errors, "objects": objects, "right": objects - 0.5}


def file(method, share):
    keep = ((1, 1), *[(share, share)] * 3)
    return ScheduleFile.model_construct(method=method, schedule=LayerSchedule("norm", ("0.attn", "0.ff"), keep))


def test_k_is_dense_steps_of_equal_error_over_the_cost_and_rows_come_nearest_first():
    given = cases({"a": file("diffsparse", 0.5), "b": file("uniform", 0.25)})
    assert {"a: diffsparse, norm", "b: uniform, norm", "dense, 9 steps"} <= set(given)
    assert given["a: diffsparse, norm"].layerwise == "norm" and given["a: diffsparse, norm"].steps == 4
    found = {label: figures(case.steps, case.steps) for label, case in given.items() if case.group != "layered"}
    found |= {"a: diffsparse, norm": figures(13, 6.5), "b: uniform, norm": figures(8, 2)}
    near = {label: own["exact"] / 10 for label, own in found.items() if given[label].group != "plain"}
    rows = summary(found, near, given, draws=20)
    assert rows[0]["psnr_to_dense"]["value"] == max(row["psnr_to_dense"]["value"] for row in rows)
    by_case = {row["case"]: row for row in rows}
    assert set(by_case) == set(near)
    learned = by_case["a: diffsparse, norm"]
    assert learned["k"]["value"] == pytest.approx(13 / 6.5) and learned["right"]["value"] == 0.75
    assert learned["psnr_to_exact"]["value"] == pytest.approx(20 + 13)
    assert learned["psnr_to_dense"]["value"] == pytest.approx(30 + 13)
    assert learned["worst"]["value"] == pytest.approx(30 + 13 - 10 * np.log10(1.5))
    assert by_case["dense, 9 steps"]["k"]["value"] == pytest.approx(1) and 9 not in PLAIN
    text = tables({"prompts": PROMPTS, "seeds": [1], "steps": 4, "cases": rows})
    assert "PSNR to 4 steps" in text and "| a: diffsparse, norm | 6.5 | 7.5 | 43.0 (" in text
