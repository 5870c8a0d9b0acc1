"""What the documentation points at is there, and the repository speaks of itself alone."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

import accelaes_export as ax
from accelaes_export import policies
from benchmarks.policy_tables import tables

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples/shapes/README.md"]
VERBS = {"build", "doctor", "evaluate", "inspect", "models", "plugin", "profile", "run", "verify"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_exists(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_a_verb_and_every_make_target_is_in_the_makefile(page):
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"accelaes-export ([a-z]+)\b", text)) <= VERBS | {"turns", "builds"}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (demo|test|lint|venv|clean)\b", text)) <= targets


def test_the_plans_in_the_method_page_are_what_the_policies_make():
    rows = re.findall(r"^\| (\w+)(?:, skip ratio (\.\d+))? \| `([D.abc]+)` \| ([\d.]+) \|", method(), re.MULTILINE)
    assert len(rows) == 4
    for name, ratio, symbols, cost in rows:
        options = {"skip_ratio": float(ratio)} if ratio else {}
        plan = policies.named(name, **options).plan(28, (0.25, 0.5, 0.75))
        assert (str(plan), plan.cost) == (symbols, float(cost))


def test_the_tables_in_the_quality_page_are_what_the_benchmark_found():
    figures = json.loads((ROOT / "benchmarks/results/policies.json").read_text(encoding="utf-8"))
    assert tables(figures) in (ROOT / "docs/quality.md").read_text(encoding="utf-8")


def test_the_public_names_in_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\bax\.(\w+)", text):
        assert hasattr(ax, name), name


def test_no_file_names_a_path_of_some_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in listed:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".json", ""} and path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            found = re.findall(r"(?<![\w.])/(?:work|root|home)/[\w./-]+", text)
            assert not found, f"{name}: {found[0]}"


def method() -> str:
    return (ROOT / "docs/method.md").read_text(encoding="utf-8")
