"""A profile as tables: what each column means stands in docs/profiling.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import RenderableType
from rich.table import Table

from accelaes_export.cli.progress import readable_size
from accelaes_export.cli.timeline import timeline
from accelaes_export.contract.manifest import Manifest
from accelaes_export.measure.profiling.report import (
    BucketProfile,
    DenoiseProfile,
    Part,
    ProfileReport,
    Spread,
)
from accelaes_export.policies.plan import Plan
from accelaes_export.policies.plan_quality import said


def everything(report: ProfileReport, manifest: Manifest, *, kernels: bool) -> Iterator[RenderableType]:
    """The whole report, top to bottom."""
    yield from _machine(report)
    yield from _buckets(report)
    if kernels:
        yield from (_kernels(bucket) for bucket in report.buckets if bucket.kernels)
    yield from _policies(report, manifest)
    if report.peers or report.absent:
        yield from _peers(report)
    yield ""
    if report.parts:
        yield _parts(report.parts)
    else:
        yield f"Text encoders and VAE were not measured: {report.parts_note}"
    for note in report.notes:
        yield f"Doubtful: {note}"


def _machine(report: ProfileReport) -> Iterator[str]:
    machine, ceilings = report.machine, report.ceilings
    where = machine["gpu"]["name"] if "gpu" in machine else machine["cpu"]
    cpus = f" on CPUs {', '.join(map(str, machine['cpus']))}" if machine["pinned"] else ", not pinned"
    packages = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield f"{report.bundle['model']} ({report.bundle['backend']}, {report.bundle['dtype']}) on {where}"
    yield f"{machine['threads']} thread(s){cpus}; {packages}"
    yield (
        f"Ceilings: {ceilings.matmul_flops_per_second / 1e9:.4g} GFLOP/s in {ceilings.dtype} matrix products, "
        f"{ceilings.copy_bytes_per_second / 1e9:.4g} GB/s in copies; engine opened in {report.open_seconds:.2f} s"
    )
    yield ""


def _buckets(report: ProfileReport) -> Iterator[Table]:
    times = _table(
        f"One focus step, B = {report.bundle['rows']}, {report.request['iterations']} rounds",
        ("n", "ms", "least", "first", "of dense", "FLOPs of dense", "of limit"),
    )
    work = _table("Its work and memory", ("n", "GFLOPs", "GFLOP/s", "of ceiling", "tensors", "scratch"))
    for bucket in report.buckets:
        least, first = (f"{1e3 * seconds:.4g}" for seconds in (bucket.seconds.minimum, bucket.first_seconds))
        ratios = (_ratio(bucket.of_dense), f"{bucket.flops_of_dense:.3f}", f"{bucket.of_limit:.2f}")
        times.add_row(str(bucket.n), _ms(bucket.seconds), least, first, *ratios)
        work.add_row(
            str(bucket.n),
            f"{bucket.flops / 1e9:.4g}",
            f"{bucket.flops_per_second / 1e9:.4g}",
            f"{bucket.of_ceiling:.0%}",
            readable_size(bucket.buffer_bytes),
            readable_size(bucket.scratch_bytes),
        )
    yield times
    yield work


def _kernels(bucket: BucketProfile) -> Table:
    table = _table(f"Kernels, n = {bucket.n}", ("kernel", "calls", "ms", "of step"))
    table.caption, table.caption_justify = f"counted by {bucket.kernels_from}", "left"
    for kernel in bucket.kernels:
        share = kernel.seconds / bucket.seconds.median
        table.add_row(kernel.name[:60], f"{kernel.calls:g}", f"{1e3 * kernel.seconds:.3f}", f"{share:.0%}")
    return table


def _policies(report: ProfileReport, manifest: Manifest) -> Iterator[RenderableType]:
    first = report.request["batches"][0]
    for policy in report.policies:
        if policy.images == first:
            yield f"\nPlan of {policy.name}, {len(policy.plan)} steps; quality: {said(policy.quality)}"
            yield timeline(Plan.drawn(policy.plan, manifest.sparse_fractions, manifest.range_shares, policy.kept))
    yield ""
    table = _table(
        f"Whole denoise, {report.request['iterations']} rounds, text and VAE left out",
        ("policy", "batch", "ms", "pictures/s", "dense / this", "by FLOPs", "of limit", "runtime", "host waits"),
    )
    for policy in report.policies:
        table.add_row(policy.name, *_denoised(policy), *_overhead(policy))
    yield table
    kinds = _table("Steps", ("policy", "batch", "step", "count", "ms"))
    for policy in report.policies:
        for kind in policy.kinds:
            step = kind.kind.lower() + (f", n = {kind.n}" if kind.n else "")
            kinds.add_row(policy.name, str(policy.images), step, str(kind.count), _ms(kind.seconds))
    yield kinds


def _denoised(profile: DenoiseProfile) -> Iterable[str]:
    yield str(profile.images)
    yield _ms(profile.seconds)
    yield f"{profile.images_per_second:.3g}"
    yield "" if profile.dense_over_this is None else _ratio(profile.dense_over_this)


def _overhead(profile: DenoiseProfile) -> Iterable[str]:
    yield f"{profile.flop_limit:.2f}"
    yield "" if profile.of_limit is None else f"{profile.of_limit:.2f}"
    assert profile.runtime is not None, "policies have a runtime"
    yield f"{1e3 * profile.runtime.seconds_per_step.median:.3g} ms ({profile.runtime.of_dense_step:.1%})"
    yield "" if profile.runtime.host_waits is None else str(profile.runtime.host_waits)


def _peers(report: ProfileReport) -> Iterator[RenderableType]:
    table = _table(
        "Peers on the same weights, in the same rounds",
        ("peer", "batch", "ms", "pictures/s", "dense / this", "full computes", "wanted", "first call s"),
    )
    for peer in report.peers:
        wanted = "" if peer.wanted_computes is None else str(peer.wanted_computes)
        table.add_row(peer.name, *_denoised(peer), str(peer.full_computes), wanted, f"{peer.first_seconds:.2g}")
    if report.peers:
        yield table
        versions = {name: version for peer in report.peers for name, version in peer.versions.items()}
        yield f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}"
    for peer in report.peers:
        if peer.wanted_computes not in (None, peer.full_computes):
            yield (
                f"{peer.name} has no setting that computes {peer.wanted_computes} of {len(peer.plan)} steps in full; "
                f"{peer.full_computes} is the nearest."
            )
    for absent in report.absent:
        yield f"{absent.name} was not measured: {absent.reason}{f'; {absent.remedy}' if absent.remedy else ''}."


def _parts(parts: Iterable[Part]) -> Table:
    table = _table("Beside the denoise, one picture", ("part", "calls", "ms", "first"))
    for part in parts:
        table.add_row(part.name, str(part.calls), _ms(part.seconds), f"{1e3 * part.first_seconds:.3g}")
    return table


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for k, name in enumerate(columns):
        table.add_column(name, justify="right" if k else "left")
    return table


def _ms(spread: Spread) -> str:
    return f"{1e3 * spread.median:.4g} ({1e3 * spread.p10:.4g}-{1e3 * spread.p90:.4g})"


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.p10:.2f}-{spread.p90:.2f})"
