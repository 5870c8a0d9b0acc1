"""`accelaes-export profile`: where the time goes, by bucket and by policy, and how it compares."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from accelaes_export.cli.bundle_options import STEPS, runs_bundle

if TYPE_CHECKING:
    from accelaes_export.bundle.reading import Bundle


@click.command("profile", short_help="Measure where the time goes, beside other accelerators.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--policies",
    metavar="LIST",
    help="Policies to run, as NAME or NAME:OPTION=VALUE. [default: dense, stepcache and the bundle's own]",
)
@click.option("--steps", type=int, help=STEPS)
@click.option("--batches", default="1", show_default=True, metavar="LIST", help="Pictures made together, e.g. 1,2,4.")
@click.option("--warmup-rounds", default=3, show_default=True, help="Rounds that aren't measured.")
@click.option("--iterations", default=20, show_default=True, help="Rounds that are.")
@click.option(
    "--against", metavar="LIST", help="Peers on the same weights: eager, compile, diffusers-caches, cache-dit."
)
@click.option("--kernels", is_flag=True, help="Show each bucket's slowest kernels; --save-json always has them.")
@click.option("--save-json", type=click.Path(path_type=Path), metavar="FILE", help="Every figure, to this file.")
@click.option("--report", "page", type=click.Path(path_type=Path), help="One HTML file to look at, complete in itself.")
@click.option("--trace", type=click.Path(path_type=Path), help="One run of each as a Chrome trace, to this file.")
@click.option(
    "--checkpoint",
    metavar="DIR_OR_HUB_ID",
    help="Weights and pipeline, where they have moved. [default: where the manifest says]",
)
@runs_bundle
def command(
    bundle: Bundle,
    policies: str | None,
    steps: int | None,
    batches: str,
    warmup_rounds: int,
    iterations: int,
    against: str | None,
    kernels: bool,
    save_json: Path | None,
    page: Path | None,
    trace: Path | None,
    checkpoint: str | None,
) -> None:
    """Measure a bundle here: every bucket, whole denoises by policy, and other accelerators on the same weights.

    Everything takes turns in rounds, so ratios compare what ran moments apart; figures are medians with the 10th to
    90th percentile. docs/profiling.md says how to read them.

    \b
    Examples:
        accelaes-export profile engines/built/shapes
        accelaes-export profile engines/built/shapes --batches 1,4 --save-json shapes.json --trace shapes-trace.json
        accelaes-export profile engines/built/shapes --against eager,compile,diffusers-caches --report page.html
    """
    from accelaes_export.cli import profile_tables
    from accelaes_export.cli.policy_options import labelled_policies
    from accelaes_export.cli.progress import TerminalProgress
    from accelaes_export.cli.terminal import progress_lines, quiet_libraries, results
    from accelaes_export.files.writing import check_writable, write_whole
    from accelaes_export.measure.profiling.profile import profile
    from accelaes_export.measure.profiling.request import ProfileRequest
    from accelaes_export.options import parse_counts, parse_names

    # Everything that can be wrong with the request is found before anything is loaded.
    manifest = bundle.manifest
    check_writable(save_json, page, trace)
    if policies is None:
        policies = ",".join(dict.fromkeys(("dense", "stepcache", manifest.defaults.policy)))
    request = ProfileRequest(
        policies=labelled_policies(manifest, policies),
        steps=steps,
        batches=parse_counts("--batches", batches),
        warmup=warmup_rounds,
        iterations=iterations,
        against=() if against is None else parse_names("--against", against),
        checkpoint=checkpoint,
    )
    request.plans(manifest)

    # Read when cache-dit is imported, and when torch's profiler starts.
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    quiet_libraries()
    measured = profile(bundle, request, TerminalProgress(progress_lines()))
    report, written = measured.report, []
    # Shown first: should a file fail after all, the figures aren't lost.
    console = results()
    for part in profile_tables.everything(report, manifest, kernels=kernels):
        console.print(part, soft_wrap=isinstance(part, str))
    if save_json is not None:
        write_whole(save_json, report.model_dump_json(indent=1) + "\n")
        written.append(save_json)
    if page is not None:
        from accelaes_export.measure.report.profile_page import profile_page

        write_whole(page, profile_page(report, manifest))
        written.append(page)
    if trace is not None:
        from accelaes_export.measure.profiling.trace import chrome_trace

        about = {"bundle": str(bundle.path), "created": report.created, "created_by": report.created_by}
        write_whole(trace, chrome_trace(measured.spans, about))
        written.append(trace)
    if written:
        console.print(f"Wrote {', '.join(map(str, written))}", soft_wrap=True)
