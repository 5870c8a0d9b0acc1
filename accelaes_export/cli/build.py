"""`accelaes-export build`: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from accelaes_export.backends import names


@click.command("build", short_help="Build a bundle: a checkpoint compiled for a backend.")
@click.option("--model", required=True, metavar="NAME", help="What to build; see accelaes-export models.")
@click.option(
    "--checkpoint",
    metavar="DIR_OR_HUB_ID",
    help="A diffusers folder or a hub id of the same architecture, e.g. your fine-tune. [default: the recipe's]",
)
@click.option(
    "--variant",
    metavar="NAME",
    help="Which of the checkpoint's weight files, e.g. fp16. [default: the plain ones, or the only variant]",
)
@click.option(
    "--random-weights",
    is_flag=True,
    help="Build the full architecture with random weights: no download; for latency work and CI.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of --random-weights.")
@click.option(
    "--backend",
    default="onnxruntime",
    show_default=True,
    metavar="NAME",
    help=f"{', '.join(names()[:-1])} or {names()[-1]}; see accelaes-export doctor.",
)
@click.option(
    "--target",
    "targets",
    metavar="SM,...",
    help="Compute capabilities of the GPUs it shall run on, e.g. sm86,sm120; aoti also takes cpu, x86-64-v3 and "
    "native. [default: the backend's]",
)
@click.option(
    "--resolution", metavar="HEIGHTxWIDTH", help="Picture size in pixels, height first. [default: the recipe's]"
)
@click.option("--batch", type=int, help="Images per call; guidance doubles the rows. [default: the recipe's]")
@click.option("--dtype", metavar="fp16|bf16|fp32", help="Of activations and weights. [default: the recipe's]")
@click.option(
    "--buckets",
    metavar="N/N,...",
    help="Fractions of image tokens that sparse steps may compute, e.g. 0.25,0.5,0.75; dense (1.0) is always built, "
    "and skip ratio p needs the bucket 1 - p. [default: the recipe's]",
)
@click.option(
    "--block-ranges",
    metavar="FIRST:LAST,...",
    help="Ranges of blocks that steps may leave out, for policy delta-dit, e.g. 0:12,12:24; each is another engine. "
    "[default: the recipe's]",
)
@click.option(
    "--layerwise",
    metavar="RANKING",
    help="toca, similarity or norm: also a step whose attention and feed-forward parts each compute tokens of their "
    "own, ranked so, for policy diffsparse; another engine (onnxruntime, aoti). none: without. "
    "[default: the recipe's]",
)
@click.option(
    "--affinity-every",
    "--affinity-layers",  # as it was called
    "affinity_every",
    type=int,
    metavar="K",
    help="The mask averages the text attention of every K-th block; 1: of all. [default: the recipe's]",
)
@click.option(
    "--form",
    metavar="token|component",
    help="token: only focus tokens go through the network; component: attention and feed-forward outputs of the "
    "background are reused (the paper's). [default: the recipe's]",
)
@click.option(
    "--weights",
    metavar="engine|inputs",
    help="inputs: weights lie beside a TensorRT engine and are bound when it is opened, so that models larger than "
    "this machine's memory can be built. [default: the recipe's]",
)
@click.option(
    "--attention",
    metavar="auto|plugin|native",
    help="plugin: TensorRT engines and aoti packages for GPUs take the kernel of accelaes-export plugin; native: their "
    "own; auto: whichever was measured faster. [default: the recipe's]",
)
@click.option(
    "--compiling",
    metavar="FLAG,...",
    help="How aoti generates kernels: autotune (try several for every matrix product), per-bucket (a package each), "
    "freezing or no-freezing (weights in the kernels' own layouts). [default: the recipe's]",
)
@click.option(
    "--text-multiple",
    type=int,
    metavar="TOKENS",
    help="Pad masked texts to a multiple of so many tokens, as every new length costs a GPU a plan. [default: the "
    "whole window on GPUs, or 64 where text is computed with the image; 1 on CPUs]",
)
@click.option(
    "--presets",
    metavar="POLICY,...",
    help="Policies to have in the bundle as graphs, for runtimes without Python, e.g. dense,accelaes,drift:budget=12; "
    "none: none. [default: the recipe's]",
)
@click.option(
    "--components",
    metavar="text,vae,tokenizers|all",
    help="What the bundle shall have of the pipeline beside the transformer; with all of it, run needs no checkpoint. "
    "none: nothing. [default: the recipe's]",
)
@click.option("--frames", type=int, help="Latent frames of a video model. [default: the recipe's]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder. [default: engines/built/MODEL-BACKEND-DTYPE]"
)
@click.option(
    "--tuning",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Plans for drift that tune wrote, with their learned coefficients.",
)
@click.option("--tuning-anyway", is_flag=True, help="Take it for other weights or pictures than it was made with.")
@click.option(
    "--sign",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Sign the bundle with this Ed25519 private key (PEM), for those who open it with --trust.",
)
@click.option("--force", is_flag=True, help="Replace another bundle in that folder.")
def command(
    model: str,
    checkpoint: str | None,
    random_weights: bool,
    seed: int,
    backend: str,
    targets: str | None,
    output: Path | None,
    tuning: Path | None,
    tuning_anyway: bool,
    sign: Path | None,
    force: bool,
    **override: Any,
) -> None:
    """Build a bundle: export a checkpoint once and compile it for a backend, one profile per bucket.

    Says first how much disk and memory it needs, and stops where they aren't there. Stages finished by an earlier
    build of the same thing are reused. The folder is written at the end, at once: Ctrl-C leaves it as it was.

    \b
    Examples:
        accelaes-export build --model shapes -o engines/built/shapes
        accelaes-export build --model sd3 --checkpoint ./my-sd3 --backend tensorrt-rtx --target sm86,sm120
        accelaes-export build --model shapes --components all -o engines/built/shapes
        accelaes-export build --model shapes --tuning shapes.tuning.json -o engines/built/shapes
        accelaes-export build --model sd3 --random-weights --resolution 512x512 --buckets 0.5
    """
    from accelaes_export.building import builder
    from accelaes_export.cli.progress import TerminalProgress, readable_size
    from accelaes_export.cli.terminal import progress_lines, results

    bundle = builder.build(
        checkpoint,
        model=model,
        backend=backend,
        output=output,
        targets=targets,
        random_weights=random_weights,
        seed=seed,
        tuning=tuning,
        tuning_anyway=tuning_anyway,
        sign=sign,
        force=force,
        progress=TerminalProgress(progress_lines()),
        **override,
    )
    manifest = bundle.manifest
    size = sum(record.size for record in manifest.files.values())
    console = results()
    console.print(
        f"Bundle {bundle.path}: {manifest.model}, {manifest.geometry.contract.dtype}, {readable_size(size)}",
        soft_wrap=True,
    )
    console.print(f"  for {manifest.backend.name} on {', '.join(manifest.backend.targets)}", soft_wrap=True)
    console.print(f"Next: accelaes-export inspect {bundle.path}", soft_wrap=True)
