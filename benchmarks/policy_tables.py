"""The figures of benchmarks/policies.py as the tables of docs/quality.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TITLES = {"curves": "Plain dense steps, and with θ", "policies": "Policies", "ablations": "Ablations"}
COLUMNS = "| case | T | cost | PSNR to 160 steps | PSNR to dense 28 | right | k | k, same θ |\n|" + "---|" * 8


TIMES = "What a cost is in time"
TIMES_COLUMNS = "| case | T | cost | ms | 28 dense steps / this | 28 / cost | by counted FLOPs |\n|" + "---|" * 7


def tables(figures: Mapping[str, Any]) -> str:
    """Markdown: a table for each group, the plans of the policies, and the times, of what there is."""
    parts = _quality(figures) if "cases" in figures else []
    if "times" in figures:
        parts += _times(figures["times"])
    return "\n\n".join(parts)


def sample_of(figures: Mapping[str, Any]) -> str:
    """What figures and intervals are of."""
    seeds = len(figures["seeds"])
    return f"{figures['prompts']} prompts x {seeds} noise{'s' if seeds > 1 else ''}, 95 % intervals in brackets."


def _quality(figures: Mapping[str, Any]) -> list[str]:
    cases = figures["cases"]
    parts = [sample_of(figures)]
    for group, title in TITLES.items():
        rows = [row for row in cases if row["group"] == group]
        if rows:
            rows = rows if group == "ablations" else sorted(rows, key=lambda row: row["token_steps"])
            parts += [f"### {title}", "\n".join([COLUMNS, *map(_row, rows)])]
    plans = [row for row in cases if row["policy"] in ("drift", "ras", "accelaes") and row["group"] == "policies"]
    parts.append(
        "\n".join(["| case | plan |", "|---|---|", *(f"| {row['case']} | `{row['plan']}` |" for row in plans)])
    )
    return parts


def _times(times: Mapping[str, Any]) -> list[str]:
    where, rows = times["machine"], times["rows"]
    threads = f"{where['threads']} thread{'s' if where['threads'] > 1 else ''}"
    said = (
        f"Whole denoise of one picture, text encoding and VAE left out: {where['cpu']}, {threads}, ONNX Runtime "
        f"{where['versions']['onnxruntime']}, {where['date']}. The cases in turn in each of {times['rounds']} rounds, "
        "ratios formed within a round; median, and the 10th to 90th percentile in brackets."
    )
    return [f"### {TIMES}", said, "\n".join([TIMES_COLUMNS, *(_time(row, rows[0]) for row in rows)])]


def _time(row: Mapping[str, Any], dense: Mapping[str, Any]) -> str:
    cells = [
        row["policy"],
        str(len(row["plan"])),
        f"{row['token_steps']:.4g}",
        written(row["milliseconds"], ".0f", ("median", "p10", "p90")),
        "1" if row is dense else written(row["dense_over_this"], ".2f", ("median", "p10", "p90")),
        f"{dense['token_steps'] / row['token_steps']:.2f}",
        f"{row['flop_limit']:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _row(row: Mapping[str, Any]) -> str:
    cells = [
        row["case"],
        str(row["steps"]),
        f"{row['token_steps']:.4g}",
        written(row["psnr_to_exact"], ".1f"),
        "-" if row["psnr_to_dense"]["value"] > 100 else written(row["psnr_to_dense"], ".1f"),
        written(row["right"], ".3f"),
        written(row["k"], ".2f"),
        written(row["k_theta"], ".2f"),
    ]
    return f"| {' | '.join(cells)} |"


def written(figure: Mapping[str, float], form: str, names: tuple[str, str, str] = ("value", "low", "high")) -> str:
    """A figure with its interval; below 1 without the zero."""
    value, low, high = (
        format(figure[name], form).replace("0.", ".", 1) if abs(figure[name]) < 1 else format(figure[name], form)
        for name in names
    )
    return f"{value} ({low}-{high})"
