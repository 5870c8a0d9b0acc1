"""`accelaes-export tune`: find a checkpoint's plans and solver coefficients, for `build --tuning`, or a layer-wise
schedule, for `run --schedule`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from accelaes_export.cli.bundle_options import runs_bundle
from accelaes_export.errors import InputError

if TYPE_CHECKING:
    from accelaes_export.bundle.reading import Bundle


# ScheduleMethod, which help is shown without loading
_LAYERED = ("diffsparse", "random", "greedy", "evolutionary", "uniform")


@click.command("tune", short_help="Find what suits a checkpoint: plans for drift, schedules for diffsparse.")
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
    type=click.Choice(["search", "fit", *_LAYERED]),
    help="search: find drift's plans, and fit their coefficients; fit: the bundle's own plans as they are. diffsparse: "
    "learn a layer-wise schedule; random, greedy, evolutionary, uniform: schedules to compare it with.",
)
@click.option(
    "--evaluations",
    default=96,
    show_default=True,
    type=int,
    metavar="N",
    help="Plans that a search tries for each budget, or schedules that random and evolutionary try.",
)
@click.option(
    "--budgets",
    "--budget",
    metavar="LIST",
    help="Of drift's plans, in dense steps. [default: all the bundle lists] Of a layer-wise schedule: the share of the "
    "parts' tokens that may be computed, such as 0.46.",
)
@click.option(
    "--plan",
    "plans",
    multiple=True,
    metavar="PLAN",
    help="Fit this plan, in place of budgets' own and of a search; may be given again. It is for the budget it costs.",
)
@click.option("--steps", type=int, help="T of a layer-wise schedule. [default: 20]")
@click.option(
    "--iterations",
    type=int,
    metavar="N",
    help="Pictures that diffsparse's second stage learns by; its first has a third of it. [default: 96]",
)
@click.option(
    "--distance",
    metavar="NAME",
    help="What layer-wise schedules are to make small: lpips, latents, or MODULE:FUNCTION of two batches of pictures. "
    "[default: lpips where its weights are at hand, else latents]",
)
@click.option("--seed", default=0, show_default=True, help="Of the first picture's noise; the others' follow it.")
@click.option("--guidance", type=float, help="Classifier-free guidance scale. [default: the bundle's]")
@click.option("--teacher-steps", type=int, help="Dense steps of the runs that plans are fitted to. [default: 160]")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The tuning or schedule."
)
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
    steps: int | None,
    iterations: int | None,
    distance: str | None,
    seed: int,
    guidance: float | None,
    teacher_steps: int | None,
    output: Path,
    checkpoint: str | None,
) -> None:
    """Find the plans, and fit the weights by which their steps are put together, to this checkpoint; or a schedule.

    Every prompt is drawn once by many dense steps. Plans are changed step by step, and kept where their pictures come
    nearer to those; each plan's coefficients are fitted so that its pictures stay nearest at every step. What is done
    is kept beside the output, where the same command goes on. docs/tuning.md says how it goes, and what it gains. Build
    a bundle with the result: accelaes-export build --tuning FILE.

    A layer-wise schedule says which share of the tokens each part of each block computes at every step; the bundle must
    be built with --layerwise. A picture of it is written beside the file. Run it: accelaes-export run BUNDLE --policy
    diffsparse --schedule FILE. docs/sparsity.md says how it is learned.

    \b
    Examples:
        accelaes-export tune engines/built/shapes --prompts prompts.txt -o shapes.tuning.json
        accelaes-export tune engines/built/shapes --prompts prompts.txt --budgets 8,12 -o shapes.tuning.json
        accelaes-export tune engines/built/layerwise --prompts prompts.txt --method diffsparse -o shapes.schedule.json
    """
    if method in _LAYERED:
        from accelaes_export.cli.tune_layers import Asked, learn_schedule

        not_for("a layer-wise schedule", plan=plans, teacher_steps=teacher_steps)
        asked = Asked(method, budgets, evaluations, steps, iterations, distance, seed, guidance, checkpoint)
        learn_schedule(bundle, prompts, asked, output)
        return
    not_for("drift's plans", steps=steps, iterations=iterations, distance=distance)
    from accelaes_export.cli.progress import TerminalProgress
    from accelaes_export.cli.terminal import progress_lines, quiet_libraries, results
    from accelaes_export.files.replacing import remove
    from accelaes_export.files.writing import check_writable, write_whole
    from accelaes_export.measure.quality.prompts import read_prompts
    from accelaes_export.options import parse_budgets
    from accelaes_export.tuning.tables import tuned
    from accelaes_export.tuning.tuner import TEACHER_STEPS, TuningRequest, budgets_of, check, tune

    check_writable(output)
    request = TuningRequest(
        prompts=read_prompts(prompts),
        budgets=parse_budgets(budgets) if budgets is not None else () if plans else budgets_of(bundle),
        plans=plans,
        guidance=guidance,
        seed=seed,
        teacher_steps=TEACHER_STEPS if teacher_steps is None else teacher_steps,
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


def not_for(what: str, **options: object) -> None:
    """InputError for an option that was given and says nothing about `what`."""
    for name, value in options.items():
        if value not in (None, ()):
            raise InputError(f"--{name.replace('_', '-')} isn't for {what}; leave it out, or take another --method.")
