"""The page of an evaluation: quality against cost of all policies, their figures, and their pictures beside dense."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from accelaes_export.contract.manifest import Manifest
from accelaes_export.measure.quality import published
from accelaes_export.measure.quality.report import DENSE, ImageRow, MetricAbout, PolicyQuality, QualityReport
from accelaes_export.measure.report.chart import Point, Scatter, Timeline, scatter
from accelaes_export.measure.report.formats import significant
from accelaes_export.measure.report.gallery import gallery
from accelaes_export.measure.report.images import HEAT_GRADIENT
from accelaes_export.measure.report.page import render
from accelaes_export.policies.plan import Plan


def evaluation_page(report: QualityReport, rows: Sequence[ImageRow], folder: Path, manifest: Manifest) -> str:
    """The whole file.

    Args:
        rows: one a picture, in any order; their files are read for as many prompts as the page has room for.
        folder: the evaluation's, that the files are relative to.
        manifest: of the bundle the report is about.

    Raises:
        InputError: a picture that is not there.
    """
    place = {policy.label: k for k, policy in enumerate(report.policies)}
    rows = sorted((row for row in rows if row.policy in place), key=lambda row: place[row.policy])
    scenes, own = gallery(rows, folder, manifest.geometry.latents), own_policy(report, manifest)
    return render(
        "evaluation.html",
        {"evaluation": json.loads(report.model_dump_json())},  # infinite numbers as strings
        title=f"Quality of {report.bundle['model']}",
        report=report,
        manifest=manifest.model_dump(mode="json"),
        charts_of_metrics=[chart for about in report.metrics if (chart := metric_chart(report, about)) is not None],
        timelines=[timeline(policy, manifest) for policy in report.policies],
        scenes=scenes,
        first_shown="" if own is None else own.label,
        prompts=len({row.prompt_index for row in rows}),
        pictures=len(rows),
        heat_gradient=HEAT_GRADIENT,
        summary=summary(report, manifest, rows),
        published_label=published.LABEL,
        papers=published.papers_about(manifest.model),
    )


def metric_chart(report: QualityReport, about: MetricAbout) -> Scatter | None:
    """Every policy's figure over its cost in dense steps; None where fewer than two have a finite one.

    Distances to dense say nothing of dense itself, so it has no point there.
    """
    points = []
    for number, policy in enumerate(report.policies, 1):
        found = policy.metrics.get(about.name)
        if found is None or not math.isfinite(found.value):
            continue
        low, high = (end if end is not None and math.isfinite(end) else None for end in (found.low, found.high))
        points.append(Point(number, policy.label, policy.token_cost.value, found.value, low, high))
    if len(points) < 2:
        return None
    unit = f", {about.unit}" if about.unit else ""
    return scatter(
        "cost, token-steps in dense steps",
        f"{about.title}{unit}{_direction(about)}",
        points,
        better=about.better,
    )


def _direction(about: MetricAbout) -> str:
    return "" if about.better == "neither" else f" ({about.better} is better)"


def timeline(policy: PolicyQuality, manifest: Manifest) -> Timeline:
    """The plan of the policy's first picture, as it was carried out."""
    plan = Plan.drawn(policy.plan, manifest.sparse_fractions, manifest.range_shares, policy.kept)
    several = f"; one of {policy.plans} plans" if policy.plans > 1 else ""
    detail = f"{len(plan)} steps, cost {significant(plan.cost)}{several}"
    return Timeline(policy.label, policy.plan, tuple(step.fraction for step in plan), detail)


def own_policy(report: QualityReport, manifest: Manifest) -> PolicyQuality | None:
    """The bundle's default policy, or the first that isn't dense; None where dense is alone."""
    others = [policy for policy in report.policies if policy.label != DENSE]
    return next((policy for policy in others if policy.name == manifest.defaults.policy), others[0] if others else None)


def summary(report: QualityReport, manifest: Manifest, rows: Sequence[ImageRow]) -> list[tuple[str, str, str]]:
    """What to know first, as (figure, unit, what it is): of the bundle's own policy, or the first that isn't dense."""
    prompts = len({row.prompt_index for row in rows})
    found = [(str(len(rows)), "", f"pictures of {prompts} prompt{'s' if prompts > 1 else ''}")]
    chosen = own_policy(report, manifest)
    if chosen is None:
        return found
    if chosen.time_ratio is not None:
        found.append((f"{chosen.time_ratio.value:.2f}", "×", f"dense / {chosen.label}: time of a picture"))
    found.append((significant(chosen.token_cost.value), "", f"dense steps' work in {chosen.steps} of {chosen.label}"))
    for about in report.metrics:
        if about.name in chosen.metrics and len(found) < 4:
            found.append((significant(chosen.metrics[about.name].value), about.unit, f"{about.title}, {chosen.label}"))
    return found
