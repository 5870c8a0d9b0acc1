"""`accelaes-export run`: one picture or video from a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from accelaes_export.cli.bundle_options import runs_bundle
from accelaes_export.cli.policy_help import PoliciesBelow
from accelaes_export.cli.policy_settings import policy_settings
from accelaes_export.errors import AccelAesError, InputError
from accelaes_export.policies import names
from accelaes_export.policies.plan_quality import SHARES, said

if TYPE_CHECKING:
    from accelaes_export.bundle.reading import Bundle


@click.command("run", short_help="Make a picture from a prompt.", cls=PoliciesBelow)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="What to draw.")
@click.option("--negative-prompt", default="", help="What not to draw.")
@click.option(
    "--policy",
    metavar="NAME",
    help=f"{', '.join(names()[:-1])} or {names()[-1]}: see below. [default: the bundle's]",
)
@click.option(
    "--quality",
    type=click.Choice(list(SHARES)),
    help="In place of a policy: the cheapest measured plan whose pictures are as near to exact ones as those of all "
    "(high), 70 % or half (fast) of the model's dense steps. For bundles built with a tuning.",
)
@click.option("--steps", type=int, help="Denoising steps T. [default: the plan's or budget's, or the bundle's]")
@click.option("--guidance", type=float, help="Classifier-free guidance scale. [default: the bundle's]")
@click.option("--seed", default=0, show_default=True, help="Of the first noise.")
@policy_settings
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("out.png"),
    show_default=True,
    help="The picture; a video becomes an animated one (.png, .webp or .gif).",
)
@click.option(
    "--mask-out", type=click.Path(path_type=Path, dir_okay=False), help="The picture with its focus tokens shown."
)
@click.option(
    "--save-json",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Plan, step times and words, to this file.",
)
@click.option("--allow-nonfinite", is_flag=True, help="Write the picture even where a prediction was no number.")
@click.option(
    "--checkpoint",
    metavar="DIR_OR_HUB_ID",
    help="Text encoders and VAE from there. [default: the bundle's own; what it lacks, from where the manifest says]",
)
@runs_bundle
def command(
    bundle: Bundle,
    prompt: str,
    negative_prompt: str,
    policy: str | None,
    quality: str | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    settings: dict[str, Any],
    output: Path,
    mask_out: Path | None,
    save_json: Path | None,
    allow_nonfinite: bool,
    checkpoint: str | None,
) -> None:
    """Make a picture, and say what it took: the plan, step times by kind, and the words behind the mask.

    Options that aren't given come from the bundle, then from the policy. The policies and their options are listed
    below; docs/method.md says more.

    \b
    Examples:
        accelaes-export run engines/built/shapes --prompt "an intricate red star on the left" -o star.png
        accelaes-export run engines/built/shapes --prompt "a glossy blue ring" --policy dense -o dense.png
        accelaes-export run engines/built/shapes --prompt "a glossy blue ring" --skip-ratio 0.75 --mask-out mask.png
        accelaes-export run engines/built/shapes --prompt "a glossy blue ring" --policy drift --budget 12
        accelaes-export run engines/built/shapes-tuned --prompt "a glossy blue ring" --quality balanced
        accelaes-export run engines/built/shapes --prompt "a red star" --policy drift --plan DDDD.b.D.b..D.b
        accelaes-export run engines/built/shapes --prompt "a red star" --policy ras --policy-option metric=norm
    """
    from accelaes_export.cli import run_report
    from accelaes_export.cli.progress import TerminalProgress
    from accelaes_export.cli.terminal import progress_lines, quiet_libraries, results
    from accelaes_export.cli.timeline import timeline
    from accelaes_export.files.writing import check_writable
    from accelaes_export.options import require_guidance, require_seed
    from accelaes_export.runtime.policy_choice import policy_for, policy_of_quality, quality_of, steps_alone

    # Everything that can be wrong with the request is found before the models are loaded.
    manifest = bundle.manifest
    for path in (output, mask_out):
        run_report.require_image_path(path, video=manifest.geometry.latents.moves)
    check_writable(output, mask_out, save_json)
    guidance = manifest.defaults.guidance if guidance is None else guidance
    require_guidance(guidance)
    require_seed(seed)
    if quality is None:
        chosen = policy_for(manifest, policy, settings)
    elif policy is None and steps is None and not settings:
        chosen = policy_of_quality(manifest, quality)
    else:
        raise InputError("--quality chooses the policy, its plan and its steps; leave out the options that do as well.")
    T = steps_alone(chosen, steps, manifest.defaults.steps)
    planned = chosen.plan(T, manifest.sparse_fractions, manifest.range_shares)
    if mask_out is not None:
        run_report.require_mask(chosen.name, planned)
    console = results()
    console.print(f"Plan of {chosen.name}, {T} steps{run_report.decided_later(chosen)}")
    console.print(timeline(planned))
    measured = quality_of(manifest, chosen, str(planned))
    if measured is not None:
        console.print(f"This plan is {said(measured)}.", soft_wrap=True)

    quiet_libraries()
    from accelaes_export.runtime.generate import generate, load_pipeline
    from accelaes_export.runtime.report import nonfinite_sentence

    progress = TerminalProgress(progress_lines())
    whence = checkpoint or ("the bundle alone" if manifest.complete else manifest.source.location)
    with progress.stage("load", f"{manifest.backend.name}, {whence}"):
        pipe = load_pipeline(bundle, checkpoint)
    with progress.stage("denoise", f"{T} steps") as stage:
        result = generate(
            bundle,
            prompt,
            policy=chosen,
            steps=T,
            guidance=guidance,
            seed=seed,
            negative_prompt=negative_prompt,
            pipe=pipe,
            on_step=lambda i, steps: stage.update((i + 1) / steps, f"step {i + 1} of {steps}"),
        )
    if result.cut:
        progress.note(f"The prompt is longer than the text window; this was cut: {result.cut!r}")
    if result.report.nonfinite and not allow_nonfinite:
        raise AccelAesError(
            f"{nonfinite_sentence(result.report.nonfinite)} Nothing was written; --allow-nonfinite writes it "
            "all the same."
        )
    written = run_report.save(result, manifest, output, mask_out, save_json)
    console.print()
    console.print(run_report.step_times(result.report))
    for line in run_report.summary(result.report):
        console.print(line, soft_wrap=True)
    console.print(f"Wrote {', '.join(map(str, written))}", soft_wrap=True)
