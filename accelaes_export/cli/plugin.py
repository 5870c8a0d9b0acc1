"""`accelaes-export plugin`: the attention kernel, compiled ahead of time."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("plugin", short_help="Compile the attention kernel of TensorRT engines.")
def command() -> None:
    """Compile the attention kernel that TensorRT engines built with --attention plugin run; no GPU is needed.

    \b
    Example: kernels for the GPUs and the head size of an engine.
        accelaes-export plugin build --help
    """


@command.command("build")
@click.option("--arch", metavar="SM,...", help="GPUs, e.g. sm86,sm120. [default: all the kernel has tiles for]")
@click.option("--dtype", metavar="fp16,bf16", help="Of queries, keys and values. [default: both]")
@click.option("--head-dim", metavar="HD,...", help="Head sizes, 32 to 256 in steps of 8. [default: 64,72,128]")
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at a time. [default: one a core]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file with these kernels alone, for the C++ plugin's build. [default: the cache, where the Python plugin "
    "finds them beside those compiled before]",
)
def build(arch: str | None, dtype: str | None, head_dim: str | None, jobs: int | None, output: Path | None) -> None:
    """Compile cubins for every architecture, dtype, head size and tile; what was compiled before is reused.

    \b
    Examples:
        accelaes-export plugin build --arch sm86,sm120 --head-dim 64
        accelaes-export plugin build -o kernels.cubins
    """
    from accelaes_export.cli import plugin_build
    from accelaes_export.cli.progress import readable_size
    from accelaes_export.cli.terminal import progress_lines, results

    lines = progress_lines()
    pack = plugin_build.build(
        architectures=arch,
        dtypes=dtype,
        head_dims=head_dim,
        jobs=jobs,
        output=output,
        progress=lambda done, total, name: lines.print(f"{done}/{total} {name}", soft_wrap=True),
    )
    size = readable_size(pack.path.stat().st_size)
    results().print(f"Kernels {pack.path}: {pack.kernels} for {', '.join(pack.architectures)}, {size}", soft_wrap=True)
