"""`accelaes-export tune`: find a checkpoint's plans and solver coefficients, for `build --tuning`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from accelaes_export.cli.bundle_options import runs_bundle

if TYPE_CHECKING:
    from accelaes_export.bundle.reading import Bundle


@click.command("tune", short_help="Find plans and solver coefficients for drift on a checkpoint.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--prompts",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="One a line; # for comments. A quarter of them, the last, is only measured on.",
)
@click.option(
    "--method",
    default="search",
    show_default=True,
    type=click.Choice(["search", "fit"]),
    help="search: find plans, and fit their coefficients; fit: the bundle's own plans as they are.",
)
@click.option(
    "--evaluations",
    default=96,
    show_default=True,
    type=int,
    metavar="N",
    help="Plans that a search tries for each budget; each is fitted to a few pictures.",
)
@click.option(
    "--budgets",
    "--budget",
    metavar="LIST",
    help="Of drift's plans, in dense steps. [default: all the bundle lists]",
)
@click.option(
    "--plan",
    "plans",
    multiple=True,
    metavar="PLAN",
    help="Fit this plan, in place of budgets' own and of a search; may be given again. It is for the budget it costs.",
)
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
    method: str,
    evaluations: int,
    budgets: str | None,
    plans: tuple[str, ...],
    seed: int,
    guidance: float | None,
    teacher_steps: int,
    output: Path,
    checkpoint: str | None,
) -> None:
    """Find the plans, and fit the weights by which their steps are put together, to this checkpoint.

    Every prompt is drawn once by many dense steps. Plans are changed step by step, and kept where their pictures come
    nearer to those; each plan's coefficients are fitted so that its pictures stay nearest at every step. What is done
    is kept beside the output, where the same command goes on. docs/tuning.md says how it goes, and what it gains. Build
    a bundle with the result: accelaes-export build --tuning FILE.

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
        budgets=parse_budgets(budgets) if budgets is not None else () if plans else budgets_of(bundle),
        plans=plans,
        guidance=guidance,
        seed=seed,
        teacher_steps=teacher_steps,
        checkpoint=checkpoint,
        method=method,  # type: ignore[arg-type]
        evaluations=evaluations,
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
