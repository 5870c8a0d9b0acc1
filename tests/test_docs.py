"""What the documentation points at is there, and the repository speaks of itself alone."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

import accelaes_export as ax
from accelaes_export import policies
from accelaes_export.measure.quality import published
from benchmarks import policy_tables, sparsity, tuned

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples/shapes/README.md"]
VERBS = {"build", "doctor", "evaluate", "inspect", "models", "plugin", "profile", "run", "sdk", "tune", "verify"}


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


@pytest.mark.parametrize(
    ("name", "tables"),
    [("policies", policy_tables.tables), ("sparsity", sparsity.tables), ("tuned", tuned.tables)],
    ids=["policies", "sparsity", "tuned"],
)
def test_the_tables_in_the_quality_page_are_what_the_benchmark_found(name, tables):
    figures = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))
    page, found = (ROOT / "docs/quality.md").read_text(encoding="utf-8"), tables(figures)
    assert found.count("|---|") >= 1
    assert all(part in page for part in found.split("\n\n"))


def published_table(paper, table):
    """Markdown: the heading that labels it, and the figures as printed."""
    arrows = {"higher": " ↑", "lower": " ↓", "neither": ""}
    units = (f", {column.unit}" if column.unit else "" for column in table.columns)
    heads = [f"{c.title}{unit}{arrows[c.better]}" for c, unit in zip(table.columns, units, strict=True)]
    lines = [f"*{' '.join(filter(None, (paper.heading(table) + '.', table.remark)))}*", ""]
    lines += [f"| {' | '.join(row)} |" for row in ([table.rows_are, *heads], ["---"] * (1 + len(heads)), *table.rows)]
    return "\n".join(lines)


def papers_section():
    return (ROOT / "docs/quality.md").read_text(encoding="utf-8").partition("## What the papers report\n")[2]


def test_the_published_ablations_in_the_quality_page_are_the_data_each_under_its_label():
    section = papers_section()
    ablations = [(paper, table) for paper in published.papers() for table in paper.tables if table.ablation]
    for paper, table in ablations:
        assert f"\n\n{published_table(paper, table)}\n\n" in section
    # No table of the section is anything else, and none of them stands elsewhere on the page.
    tables_there = re.findall(r"^\|[ |:-]+\|$", section, re.MULTILINE)
    assert len(tables_there) == section.count(f"*{published.LABEL}: ") == len(ablations)
    page = (ROOT / "docs/quality.md").read_text(encoding="utf-8")
    assert published.LABEL not in page.removesuffix(section)


def test_what_the_quality_page_says_of_ras_and_fewer_steps_is_in_its_table():
    ras = next(paper for paper in published.papers() if paper.name == "RAS")
    rows = next(table for table in ras.tables if table.number == "11").rows
    speed, fid = next((float(row[3]), float(row[4])) for row in rows if row[:2] == ("RFlow", "10"))
    own = [(float(row[3]), float(row[4])) for row in rows if row[:2] == ("RAS", "28")]
    assert len(own) == 4 and all(other[0] < speed and other[1] > fid for other in own)
    section = " ".join(papers_section().split())
    said = "a worse FID ({:.2f} to {:.2f}) at fewer pictures a second ({:.2f} to {:.2f}) than ten plain steps"
    extremes = (f(pair[k] for pair in own) for k in (1, 0) for f in (min, max))
    assert f"{said.format(*extremes)} ({fid} at {speed:.2f})".replace("0.", ".") in section
    few = {row[:3]: (row[4], row[3]) for row in rows}
    said = "7 steps at 25 %: {} at {}, 5 plain steps: {} at {}"
    assert said.format(*few["RAS", "7", "25.0"], *few["RFlow", "5", "100"]) in section


def test_the_evaluation_page_lists_every_model_with_published_figures():
    text = (ROOT / "docs/evaluate.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^\| `([\w.-]+)` \| ((?:AccelAes|RAS|DiffSparse) [^|]+) \|$", text, re.MULTILINE))
    names = sorted({name for paper in published.papers() for table in paper.tables for name in table.recipes})
    assert found == {
        name: "; ".join(f"{p.name} {', '.join(t.number for t in p.tables)}" for p in published.papers_about(name))
        for name in names
    }


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
