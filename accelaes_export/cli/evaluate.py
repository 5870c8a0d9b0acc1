"""`accelaes-export evaluate`: what every policy costs, and how far its pictures are from dense ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from accelaes_export.cli.bundle_options import STEPS, LateHelp, runs_bundle

if TYPE_CHECKING:
    from accelaes_export.bundle.reading import Bundle


def _metrics() -> tuple[str, ...]:
    from accelaes_export.measure.quality.metric_names import BUILT_IN

    return tuple(BUILT_IN)


@click.command("evaluate", short_help="Measure what policies cost in quality, against dense.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--prompts", required=True, metavar="FILE", type=click.Path(path_type=Path), help="One a line; # for comments."
)
@click.option(
    "--policies",
    metavar="LIST",
    help="Policies beside dense, as NAME or NAME:OPTION=VALUE. [default: all this bundle can have]",
)
@click.option("--seeds", default="1,2,3", show_default=True, metavar="LIST", help="Every prompt is drawn with each.")
@click.option(
    "--metrics",
    metavar="LIST",
    cls=LateHelp,
    late_help=lambda: f"{', '.join(_metrics())} or MODULE:ATTRIBUTE. [default: all there are]",
)
@click.option("--steps", type=int, help=STEPS)
@click.option("--guidance", type=float, help="Classifier-free guidance scale. [default: the bundle's]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("out/evaluation"),
    show_default=True,
    help="Folder of pictures, rows and summary.",
)
@click.option("--save-json", type=click.Path(path_type=Path), metavar="FILE", help="The summary, to this file as well.")
@click.option("--report", "page", type=click.Path(path_type=Path), help="One HTML file to look at, complete in itself.")
@click.option("--force", is_flag=True, help="Begin anew where another evaluation lies in the folder.")
@click.option(
    "--checkpoint",
    metavar="DIR_OR_HUB_ID",
    help="Text encoders and VAE, where the checkpoint has moved. [default: where the manifest says]",
)
@runs_bundle
def command(
    bundle: Bundle,
    prompts: Path,
    policies: str | None,
    seeds: str,
    metrics: str | None,
    steps: int | None,
    guidance: float | None,
    output: Path,
    save_json: Path | None,
    page: Path | None,
    force: bool,
    checkpoint: str | None,
) -> None:
    """Compare policies: every prompt and seed under each, measured against dense.

    Policies take turns, prompt by prompt and seed by seed. Pictures and rows appear in the folder one by one; the same
    command goes on where it was stopped. Figures have 95 % confidence intervals from resampled prompts.
    docs/evaluate.md says what each figure is.

    \b
    Examples:
        accelaes-export evaluate engines/built/shapes --prompts prompts.txt
        accelaes-export evaluate engines/built/shapes --prompts prompts.txt --policies ras,drift:budget=12 --seeds 1
        accelaes-export evaluate engines/built/shapes --prompts prompts.txt --metrics psnr,examples.shapes.metrics:ALL
    """
    from accelaes_export.cli import evaluate_tables
    from accelaes_export.cli.policy_options import labelled_policies
    from accelaes_export.cli.progress import TerminalProgress
    from accelaes_export.cli.terminal import progress_lines, quiet_libraries, results
    from accelaes_export.files.writing import check_writable, write_whole
    from accelaes_export.measure.quality.evaluation import evaluate
    from accelaes_export.measure.quality.prompts import read_prompts
    from accelaes_export.measure.quality.request import EvaluationRequest, possible_policies
    from accelaes_export.options import parse_counts, parse_names

    # Everything that can be wrong with the request is found before anything is loaded.
    manifest = bundle.manifest
    check_writable(save_json, page)
    progress = TerminalProgress(progress_lines())
    impossible: dict[str, str] = {}
    if policies is None:
        chosen, impossible = possible_policies(manifest, steps)
    else:
        chosen = labelled_policies(manifest, policies)
    request = EvaluationRequest(
        prompts=read_prompts(prompts),
        policies=chosen,
        seeds=parse_counts("--seeds", seeds, least=0),
        steps=steps,
        guidance=guidance,
        metrics=None if metrics is None else parse_names("--metrics", metrics),
        checkpoint=checkpoint,
    )
    request.check(bundle)
    for name, why in impossible.items():
        progress.note(f"{name} is left out: {why}")

    quiet_libraries()
    report = evaluate(bundle, request, output, force=force, progress=progress)
    if save_json is not None:
        write_whole(save_json, report.model_dump_json(indent=1) + "\n")
    if page is not None:
        from accelaes_export.measure.quality.folder import read_rows
        from accelaes_export.measure.report.evaluation_page import evaluation_page

        write_whole(page, evaluation_page(report, tuple(read_rows(output)), output, manifest))
    console = results()
    for part in evaluate_tables.everything(report, manifest):
        console.print(part, soft_wrap=isinstance(part, str))
    written = [output, *(path for path in (save_json, page) if path is not None)]
    console.print(f"Wrote {', '.join(map(str, written))}", soft_wrap=True)
