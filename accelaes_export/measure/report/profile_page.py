"""The page of a profile: buckets against the FLOP limit, plans, whole denoises beside peers, machine and manifest."""

from __future__ import annotations

from collections.abc import Sequence

from accelaes_export.contract.manifest import Manifest
from accelaes_export.measure.profiling.report import BucketProfile, DenoiseProfile, ProfileReport
from accelaes_export.measure.report.chart import Bar, BarChart, Timeline, bar_chart
from accelaes_export.measure.report.formats import share, significant, time_unit
from accelaes_export.measure.report.page import render
from accelaes_export.policies.plan import Plan

_DENSE = "dense"


def profile_page(report: ProfileReport, manifest: Manifest) -> str:
    """The whole file. `manifest` is that of the bundle the report is about."""
    batches = tuple(dict.fromkeys(profile.images for profile in (*report.policies, *report.peers)))
    return render(
        "profile.html",
        {"profile": report.model_dump(mode="json")},
        title=f"Profile of {report.bundle['model']}",
        report=report,
        manifest=manifest.model_dump(mode="json"),
        buckets_chart=buckets_chart(report.buckets),
        denoise_charts=[(images, denoise_chart(report, images)) for images in batches],
        timelines=[
            timeline(profile, manifest)
            for profile in (*report.policies, *report.peers)
            if profile.images == report.request["batches"][0]
        ],
        summary=summary(report, manifest),
    )


def buckets_chart(buckets: Sequence[BucketProfile]) -> BarChart:
    """Time of one step by n. The mark is the dense step's time times the step's share of its FLOPs: where the bar would
    end if time fell as FLOPs do."""
    dense = buckets[-1].seconds.median
    times, unit = time_unit(dense)
    bars = [
        Bar(
            label=f"n = {bucket.n} ({share(bucket.fraction)})",
            text=f"{significant(times * bucket.seconds.median)} {unit} · {bucket.of_dense.median:.2f} of dense",
            value=times * bucket.seconds.median,
            low=times * bucket.seconds.p10,
            high=times * bucket.seconds.p90,
            limit=times * dense * bucket.flops_of_dense,
        )
        for bucket in buckets
    ]
    return bar_chart("Time of one step", unit, bars)


def denoise_chart(report: ProfileReport, images: int) -> BarChart:
    """Time of a whole denoise of `images` pictures, policies first, then peers. The mark of a policy is dense's time
    over the policy's FLOP limit; where dense wasn't measured there is none."""
    shown = [p for p in (*report.policies, *report.peers) if p.images == images]
    dense = next((p.seconds.median for p in report.policies if p.images == images and p.name == _DENSE), None)
    times, unit = time_unit(max(p.seconds.median for p in shown))
    own = {id(p) for p in report.policies}
    bars = [
        Bar(
            label=p.name,
            text=f"{significant(times * p.seconds.median)} {unit}{_faster(p)}",
            value=times * p.seconds.median,
            low=times * p.seconds.p10,
            high=times * p.seconds.p90,
            limit=times * dense / p.flop_limit if dense is not None and p.flop_limit else None,
            kind="own" if id(p) in own else "other",
        )
        for p in shown
    ]
    pictures = "one picture" if images == 1 else f"{images} pictures made together"
    return bar_chart(f"Time of a denoise, {pictures}", unit, bars)


def _faster(profile: DenoiseProfile) -> str:
    over = profile.dense_over_this
    return "" if over is None or profile.name == _DENSE else f" · {over.median:.2f}×"


def timeline(profile: DenoiseProfile, manifest: Manifest) -> Timeline:
    """The plan as it was carried out."""
    plan = Plan.drawn(profile.plan, manifest.sparse_fractions, manifest.range_shares, profile.kept)
    detail = f"{len(plan)} steps, cost {significant(plan.cost)}"
    return Timeline(profile.name, profile.plan, tuple(step.fraction for step in plan), detail)


def summary(report: ProfileReport, manifest: Manifest) -> list[tuple[str, str, str]]:
    """What to know first, as (figure, unit, what it is)."""
    dense, first = report.buckets[-1], report.request["batches"][0]
    times, unit = time_unit(dense.seconds.median)
    found = [(significant(times * dense.seconds.median), unit, f"one dense step, N = {dense.n}")]
    measured = {p.name: p for p in report.policies if p.images == first}
    if _DENSE in measured:
        whole = measured[_DENSE]
        times, unit = time_unit(whole.seconds.median)
        pictures = "a picture" if first == 1 else f"{first} pictures"
        found.append((significant(times * whole.seconds.median), unit, f"{pictures}, {len(whole.plan)} dense steps"))
    default = measured.get(manifest.defaults.policy)
    if default is not None and default.dense_over_this is not None and default.name != _DENSE:
        what = f"dense / {default.name}, the bundle's own policy; {default.flop_limit:.2f} by FLOPs"
        found.append((f"{default.dense_over_this.median:.2f}", "×", what))
    if default is not None and default.runtime is not None:
        what = f"of a dense step's time is spent outside the engine at each step of {default.name}"
        found.append((share(default.runtime.of_dense_step), "", what))
    return found
