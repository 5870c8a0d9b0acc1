"""The figures of benchmarks/policies.py as the tables of docs/quality.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TITLES = {"curves": "Plain dense steps, and with θ", "policies": "Policies", "ablations": "Ablations"}
HEAD = "| case | T | cost | PSNR to 160 steps | PSNR to dense 28 | right | k | k, same θ |\n|" + "---|" * 8


def tables(figures: Mapping[str, Any]) -> str:
    """Markdown: a table for each group, and the plans of the policies."""
    cases = figures["cases"]
    seeds = len(figures["seeds"])
    parts = [f"{figures['prompts']} prompts x {seeds} noise{'s' if seeds > 1 else ''}, 95 % intervals in brackets."]
    for group, title in TITLES.items():
        rows = [row for row in cases if row["group"] == group]
        if rows:
            rows = rows if group == "ablations" else sorted(rows, key=lambda row: row["token_steps"])
            parts += [f"### {title}", "\n".join([HEAD, *map(_row, rows)])]
    plans = [row for row in cases if row["policy"] in ("drift", "ras", "accelaes") and row["group"] == "policies"]
    parts.append(
        "\n".join(["| case | plan |", "|---|---|", *(f"| {row['case']} | `{row['plan']}` |" for row in plans)])
    )
    return "\n\n".join(parts)


def _row(row: Mapping[str, Any]) -> str:
    cells = [
        row["case"],
        str(row["steps"]),
        f"{row['token_steps']:.4g}",
        _interval(row["psnr_to_exact"], ".1f"),
        "-" if row["psnr_to_dense"]["value"] > 100 else _interval(row["psnr_to_dense"], ".1f"),
        _interval(row["right"], ".3f"),
        _interval(row["k"], ".2f"),
        _interval(row["k_theta"], ".2f"),
    ]
    return f"| {' | '.join(cells)} |"


def _interval(figure: Mapping[str, float], form: str) -> str:
    value, low, high = (
        format(figure[name], form).replace("0.", ".", 1) if abs(figure[name]) < 1 else format(figure[name], form)
        for name in ("value", "low", "high")
    )
    return f"{value} ({low}-{high})"
