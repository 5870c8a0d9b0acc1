"""`accelaes-export models`: what can be built."""

from __future__ import annotations

import json

import click


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(as_json: bool) -> None:
    """List what can be built, and what each supports.

    A bucket is a fraction n/N: the share of image tokens a sparse step computes. A skip ratio p leaves p of them
    out, so it needs the bucket 1 - p. Dense (1.0) is always built beside the buckets.

    \b
    Example:
        accelaes-export models
    """
    from accelaes_export.cli.catalogue import models

    entries = models()
    if as_json:
        click.echo(json.dumps([entry.as_dict() for entry in entries], indent=2))
        return
    from rich.table import Table

    from accelaes_export.cli.terminal import results

    console = results()
    for entry in entries:
        height, width = entry.resolution
        skips = ", ".join(f"{1 - bucket:g}" for bucket in reversed(entry.buckets)) or "none"
        table = Table(title=entry.name, title_style="bold", title_justify="left", box=None, show_header=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column()
        table.add_row("title", entry.title)
        table.add_row("family", entry.family)
        table.add_row("source", entry.source)
        table.add_row("image tokens", f"N = {entry.tokens} at {height}x{width} (height x width)")
        table.add_row("text tokens", f"M = {entry.text_tokens}")
        table.add_row("dtype", entry.dtype)
        table.add_row("buckets", f"{', '.join(f'{b:g}' for b in entry.buckets)}, 1 (dense): skip ratios {skips}")
        table.add_row("forms", ", ".join(entry.forms))
        table.add_row("guidance", f"{entry.guidance:g}")
        table.add_row("spatial CFG", "on by default" if entry.spatial_cfg else "off by default")
        table.add_row("steps", str(entry.steps))
        table.add_row("tested", "yes" if entry.tested else "architecture only (random weights)")
        console.print(table)
        console.print()
    console.print("A bucket is a fraction n/N of image tokens computed; skip ratio p needs the bucket 1 - p.")
    console.print("Build one: accelaes-export build --model NAME", soft_wrap=True)
