"""What benchmarks/families.py builds, compares and says, on files and figures made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from accelaes_export.backbones import backbone_of
from accelaes_export.backbones.checkpoints import resolve
from accelaes_export.contract.schedules import ScheduleFile
from accelaes_export.policies import DiffSparse, LayerSchedule
from benchmarks import families, tuned
from benchmarks.families import CHECKPOINTS, PUBLISHED, cases, recipe, tables
from benchmarks.policy_cases import PolicyCase


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_small_checkpoint_is_built_by_its_familys_recipe_at_its_own_size(family):
    own = recipe(family, CHECKPOINTS / family)
    assert (own.family, own.resolution, own.vae_scale, own.steps) == (family, (48, 48), 2, 28)
    assert own.text_tokens == 32 and not own.plans and own.checkpoint == str(CHECKPOINTS / family)


@pytest.mark.parametrize("family", [path.name for path in sorted(CHECKPOINTS.iterdir())])
def test_the_checkpoints_beside_the_examples_are_of_their_families_and_small(family):
    found = resolve(str(CHECKPOINTS / family), backbone_of(family), whole=True)
    assert found.source.weights_sha256
    assert sum(path.stat().st_size for path in (CHECKPOINTS / family).rglob("*") if path.is_file()) < 10 * 2**20


@pytest.mark.parametrize("paired", [True, False])
def test_every_policy_is_compared_and_guidance_by_region_where_there_are_pairs(paired, tmp_path, monkeypatch):
    schedule = LayerSchedule("similarity", ("0.attn", "0.ff"), ((1.0, 1.0), (0.5, 0.0)))
    read = ScheduleFile.model_construct(method="diffsparse", schedule=schedule)
    monkeypatch.setattr(families, "read_schedule", lambda path: read)
    asked = []
    monkeypatch.setattr(tuned, "cases", lambda *paths: asked.append(paths) or {"dense, 28 steps": "curve"})
    found = cases(tmp_path, paired=paired)
    assert asked == [(tmp_path / "tuning.json", tmp_path / "fitted.json")]
    learned = found["diffsparse, .46 of 20 steps"]
    assert isinstance(learned.policy, DiffSparse) and (learned.steps, learned.layerwise) == (2, "similarity")
    assert ("accelaes, p = .5, guided by 7 and 1" in found) == paired
    assert {"stepcache", "accelaes, p = .5", "accelaes, p = .75", "accelaes, p = .5, random mask"} <= set(found)


def test_what_tune_made_is_not_made_again_and_what_it_refuses_ends_the_run(tmp_path, monkeypatch):
    class Bundle:
        path = tmp_path / "bundle"

    monkeypatch.setattr(families.sys, "executable", str(tmp_path / "python"))
    command, made = tmp_path / "accelaes-export", tmp_path / "tuning.json"
    command.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\necho {} > "$(dirname "$0")/tuning.json"\n')
    command.chmod(0o755)
    first = families._tuned(made, Bundle, ["a star", "a moon"], "--budgets", "6")
    assert first == families._tuned(made, Bundle, ["a star", "a moon"], "--budgets", "6")
    assert first["seconds"] > 0 and first["peak_gib"] > 0
    asked = f"tune {tmp_path}/bundle --prompts {tmp_path}/tuning.txt --budgets 6 -o {made}\n"
    assert (tmp_path / "asked").read_text() == asked
    assert (tmp_path / "tuning.txt").read_text() == "a star\na moon\n"
    command.write_text("#!/bin/sh\nexit 2\n")
    with pytest.raises(SystemExit, match="tune ended with 2"):
        families._tuned(tmp_path / "other.json", Bundle, ["a star"])
    assert not (tmp_path / "other.spent.json").exists()


def test_the_tables_have_every_case_the_plans_and_the_mask():
    given = tuned.cases(None, None) | {"stepcache": PolicyCase(DiffSparse, 28)}
    figure = {"value": 0.9, "low": 0.8, "high": 1.0}
    names = ("psnr", "median", "worst", "right", "k", "k_fitted")
    rows = [
        {"case": label, "group": case.group, "plan": "DD", "token_steps": 2, "flop_cost": 2.5}
        | dict.fromkeys(names, figure)
        for label, case in given.items()
    ]
    mask = [{"weights": "phrase", "hit_rate": np.float64(0.87), "chance": 0.5, "auc": 0.912}]
    text = tables(json.loads(json.dumps({"prompts": 4, "seeds": [1], "cases": rows, "mask": mask})))
    assert "| stepcache | 2 | 2 |" in text and "| phrase | 87% | 50% | 0.91 |" in text
