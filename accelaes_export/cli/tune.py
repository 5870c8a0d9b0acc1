"""`accelaes-export tune`: learn a checkpoint's solver coefficients, for `build --tuning`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from accelaes_export.cli.bundle_options import runs_bundle

if TYPE_CHECKING:
    from accelaes_export.bundle.reading import Bundle


@click.command("tune", short_help="Learn solver coefficients for drift's plans on a checkpoint.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--prompts",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="One a line; # for comments. A quarter of them, the last, is only measured on.",
)
@click.option("--budgets", metavar="LIST", help="Of drift's plans, in dense steps. [default: all the bundle lists]")
@click.option("--seed", default=0, show_default=True, help="Of the first picture's noise; the others' follow it.")
@click.option("--guidance", type=float, help="Classifier-free guidance scale. [default: the bundle's]")
@click.option(
    "--teacher-steps", default=160, show_default=True, type=int, help="Dense steps of the runs taken for right."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The tuning.")
@click.option(
    "--checkpoint",
    metavar="DIR_OR_HUB_ID",
    help="Text encoders, where the checkpoint has moved. [default: where the manifest says]",
)
@runs_bundle
def command(
    bundle: Bundle,
    prompts: Path,
    budgets: str | None,
    seed: int,
    guidance: float | None,
    teacher_steps: int,
    output: Path,
    checkpoint: str | None,
) -> None:
    """Fit the weights by which a plan's steps are put together, to this checkpoint.

    Every prompt is drawn once by many dense steps; then the plan's coefficients are fitted step by step, so that its
    pictures stay nearest to those. What is done is kept beside the output, where the same command goes on.
    docs/tuning.md says how it is fitted, and what it gains. Build a bundle with the result:
    accelaes-export build --tuning FILE.

    \b
    Examples:
        accelaes-export tune engines/built/shapes --prompts prompts.txt -o shapes.tuning.json
        accelaes-export tune engines/built/shapes --prompts prompts.txt --budgets 8,12 -o shapes.tuning.json
    """
    from accelaes_export.cli.progress import TerminalProgress
    from accelaes_export.cli.terminal import progress_lines, quiet_libraries, results
    from accelaes_export.files.replacing import remove
    from accelaes_export.files.writing import check_writable, write_whole
    from accelaes_export.measure.quality.prompts import read_prompts
    from accelaes_export.options import parse_budgets
    from accelaes_export.tuning.tables import tuned
    from accelaes_export.tuning.tuner import TuningRequest, budgets_of, check, tune

    check_writable(output)
    request = TuningRequest(
        prompts=read_prompts(prompts),
        budgets=budgets_of(bundle) if budgets is None else parse_budgets(budgets),
        guidance=guidance,
        seed=seed,
        teacher_steps=teacher_steps,
        checkpoint=checkpoint,
    )
    check(bundle, request)
    quiet_libraries()
    keep = output.with_name(f"{output.name}.part")
    found = tune(bundle, request, TerminalProgress(progress_lines()), keep=keep)
    write_whole(output, found.model_dump_json(indent=1) + "\n")
    remove(keep)
    console = results()
    console.print(tuned(found))
    console.print(f"Wrote {output}", soft_wrap=True)
    console.print(f"Next: accelaes-export build --model {found.model} --tuning {output}", soft_wrap=True)
