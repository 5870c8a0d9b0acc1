"""What the GPU benchmark measured, as Markdown. Needs nothing but the reports."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

COMPILED = "torch.compile"
Report = Mapping[str, Any]


def table(
    reports: Mapping[str, Report], stages: Mapping[str, str], checks: Mapping[str, Report], commit: str = ""
) -> str:
    """The whole page.

    Args:
        reports: profiles by "model.set", of which some may be unfinished.
        stages: what became of every stage.
        checks: what was found of every model's engine.
        commit: what was measured.
    """
    lines: list[str] = [f"Commit {commit}", ""] if commit else []
    lines += [*_checks(checks), ""] if checks else []
    for name, report in reports.items():
        lines += [*_heading(name, report), "", *_policies(report), ""]
        if name.endswith(".policies"):
            lines += [*_buckets(report), ""]
    lines += ["| stage | |", "|---|---|", *(f"| {name} | {outcome} |" for name, outcome in stages.items()), ""]
    return "\n".join(lines)


def _heading(name: str, report: Report) -> Iterator[str]:
    bundle, machine, ceilings = report["bundle"], report["machine"], report["ceilings"]
    model, _, kind = name.rpartition(".")
    where = machine["gpu"]["name"] if "gpu" in machine else f"{machine['cpu']}, {machine['threads']} thread(s)"
    yield f"## {model}, {kind}"
    yield ""
    yield (
        f"{where}; torch {machine['versions'].get('torch')}; {bundle['backend']}, {bundle['dtype']}, "
        f"{bundle['layers']} blocks, N = {bundle['tokens']}, M = {bundle['text_tokens']}, B = {bundle['rows']}; "
        f"{report['created']}. Ceilings: {ceilings['matmul_flops_per_second'] / 1e12:.4g} TFLOP/s, "
        f"{ceilings['copy_bytes_per_second'] / 1e12:.3g} TB/s."
    )
    for note in report["notes"]:
        yield f"Doubtful: {note}"
    if report.get("unfinished"):
        yield f"Stopped before {report['unfinished']}."


def _checks(checks: Mapping[str, Report]) -> Iterator[str]:
    """Is it right: every bucket against the model in fp32 on the same device, and what else was found."""
    yield "| model | device | n | against | max rel | norm rel | |"
    yield "|---|---|---|---|---|---|---|"
    for model, found in checks.items():
        for one in found.get("parity", ()):
            yield (
                f"| {model} | {found['device']} | {one['bucket']} | {one['reference']} | {one['max_rel']:.1e} "
                f"| {one['norm_rel']:.1e} | {'passed' if one['passed'] else 'WRONG'} |"
            )
        for graph in found.get("replays", ()):
            told = f"{graph['captures']} graph, {graph['replays']} replays"
            yield f"| {model} | {found['device']} | {graph['n']} | plain calls, bit for bit | | | {told} |"
        for said in found["wrong"]:
            yield f"| {model} | {found['device']} | | | | | WRONG: {said} |"


def _policies(report: Report) -> Iterator[str]:
    """Whole denoises: time, and how many times as fast as the compiled dense model: median and range of the rounds."""
    runs = [*report["policies"], *report["peers"]]
    compiled = next((run for run in runs if run["name"] == COMPILED), None)
    yield "| denoise | plan | ms | p10-p90 | compiled dense / this | limit by FLOPs | share of the limit |"
    yield "|---|---|---|---|---|---|---|"
    for run in runs:
        seconds, limit = run["seconds"], run["flop_limit"]
        over = None if compiled is None else _ratios(compiled["rounds"], run["rounds"])
        told = "" if over is None else f"{statistics.median(over):.2f} ({min(over):.2f}-{max(over):.2f})"
        share = "" if over is None or limit is None else f"{statistics.median(over) / limit:.2f}"
        yield (
            f"| {run['name']} | `{run['plan']}` | {1e3 * seconds['median']:.4g} "
            f"| {1e3 * seconds['p10']:.4g}-{1e3 * seconds['p90']:.4g} | {told} "
            f"| {'' if limit is None else f'{limit:.2f}'} | {share} |"
        )
    for absent in report["absent"]:
        yield f"| {absent['name']} | not measured: {absent['reason']} {absent['remedy']} | | | | | |"


def _buckets(report: Report) -> Iterator[str]:
    yield "| n/N | n | ms | of dense | FLOPs of dense | TFLOP/s | of the ceiling |"
    yield "|---|---|---|---|---|---|---|"
    for bucket in report["buckets"]:
        yield (
            f"| {bucket['fraction']:g} | {bucket['n']} | {1e3 * bucket['seconds']['median']:.4g} "
            f"| {bucket['of_dense']['median']:.3f} | {bucket['flops_of_dense']:.3f} "
            f"| {bucket['flops_per_second'] / 1e12:.3g} | {bucket['of_ceiling']:.0%} |"
        )


def _ratios(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """One time over another, round by round."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]
