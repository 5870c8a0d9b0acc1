"""An evaluation as tables: what each column means stands in docs/evaluate.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from accelaes_export.cli.timeline import timeline
from accelaes_export.contract.manifest import Manifest
from accelaes_export.measure.quality.published import LABEL, Column, papers_about
from accelaes_export.measure.quality.report import Interval, MetricAbout, PolicyQuality, QualityReport
from accelaes_export.policies.plan import Plan

_WIDEST_LABEL = 24
_BESIDE_COSTS, _BY_THEMSELVES = 4, 7  # metrics a terminal of 120 columns has room for
_ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}


def everything(report: QualityReport, manifest: Manifest) -> Iterator[RenderableType]:
    """The whole report, top to bottom; what papers publish of the same model stands apart, at its end."""
    for policy in report.policies:
        several = f", the first of {policy.plans}" if policy.plans > 1 else ""
        yield f"\nPlan of {policy.label}, {policy.steps} steps{several}"
        yield timeline(Plan.drawn(policy.plan, manifest.sparse_fractions, manifest.range_shares, policy.kept))
    yield ""
    yield from _figures(report)
    differences = [metric for metric in report.metrics if any(metric.name in p.differences for p in report.policies)]
    if differences:
        yield _differences(report, differences)
    for metric in report.metrics:
        yield f"{metric.title}: {metric.source or 'no source given'}"
    for absent in report.absent:
        yield f"{absent.name} was not measured: {absent.reason}; {absent.remedy}."
    for note in report.notes:
        yield f"Doubtful: {note}"
    yield from _published(manifest.model)


def _figures(report: QualityReport) -> Iterator[Table]:
    """Cost, time and metrics; metrics for which a terminal has no room in tables of their own."""
    prompts, seeds = len(report.request["prompts"]), len(report.request["seeds"])
    first, further = report.metrics[:_BESIDE_COSTS], report.metrics[_BESIDE_COSTS:]
    title = f"{prompts} prompt(s) x {seeds} seed(s), with 95 % confidence intervals"
    table = _table(title, ["policy", "cost", "by FLOPs", "seconds", "dense / this", *map(_head, first)])
    for policy in report.policies:
        costs = (_shown(policy.token_cost), _shown(policy.flop_cost), f"{policy.seconds.value:.4g}")
        table.add_row(_label(policy), *costs, _shown(policy.time_ratio), *_metrics(policy, first))
    yield table
    for k in range(0, len(further), _BY_THEMSELVES):
        some = further[k : k + _BY_THEMSELVES]
        table = _table("Further metrics", ["policy", *map(_head, some)])
        for policy in report.policies:
            table.add_row(_label(policy), *_metrics(policy, some))
        yield table


def _published(recipe: str) -> Iterator[RenderableType]:
    """Tables of whole methods out of papers about this recipe's model, labelled; of ablations, where they stand."""
    ablations = []
    for paper in papers_about(recipe):
        for published in paper.tables:
            if published.ablation:
                ablations.append(f"{paper.name} {published.number}")
                continue
            yield f"\n{paper.heading(published)}"
            table = Table(show_lines=False)
            for k, name in enumerate((published.rows_are, *map(_head, published.columns))):
                table.add_column(name, justify="right" if k else "left", overflow="fold", no_wrap=not k)
            for row in published.rows:
                table.add_row(*row)
            yield table
            if published.remark:
                yield published.remark
    if ablations:
        yield f"\n{LABEL}: also ablations in tables {', '.join(ablations)}, which the page of --report shows."


def _label(policy: PolicyQuality) -> str:
    """The label, on several lines where it is long: its column keeps its width, the others give way."""
    return textwrap.fill(policy.label, _WIDEST_LABEL)


def _metrics(policy: PolicyQuality, metrics: Sequence[MetricAbout]) -> Iterator[str]:
    return (_shown(policy.metrics.get(metric.name)) for metric in metrics)


def _differences(report: QualityReport, metrics: list[MetricAbout]) -> Table:
    table = _table("Difference to dense, same prompt and seed", ["policy", *(_head(metric) for metric in metrics)])
    for policy in report.policies:
        if policy.differences:
            table.add_row(
                _label(policy), *(_shown(policy.differences.get(metric.name), signed=True) for metric in metrics)
            )
    return table


def _head(metric: MetricAbout | Column) -> str:
    return f"{metric.title}{_ARROWS[metric.better]}" + (f"\n{metric.unit}" if metric.unit else "")


def _shown(interval: Interval | None, *, signed: bool = False) -> str:
    """The figure, and its interval underneath where it has one that isn't a point."""
    if interval is None:
        return ""
    sign = "+" if signed else ""
    figure = f"{interval.value:{sign}.4g}"
    if interval.low is None or interval.high is None or interval.low == interval.high:
        return figure
    return f"{figure}\n{interval.low:{sign}.4g} to {interval.high:{sign}.4g}"


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True)
    for k, name in enumerate(columns):
        # Narrow columns break intervals at their spaces, and anything else where it must: no digit is cut off.
        table.add_column(name, justify="right" if k else "left", overflow="fold", no_wrap=not k)
    return table
