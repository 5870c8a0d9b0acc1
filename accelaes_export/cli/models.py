"""`accelaes-export models`: what can be built."""

from __future__ import annotations

import json

import click


@click.command("models", short_help="List what can be built, or all about one model.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(name: str | None, as_json: bool) -> None:
    """List what can be built; with a NAME, all about that model.

    A bucket is a fraction n/N: the share of image tokens a sparse step computes. A skip ratio p leaves p of them
    out, so it needs the bucket 1 - p. Dense (1.0) is always built beside the buckets.

    \b
    Examples:
        accelaes-export models
        accelaes-export models flux-dev
    """
    from accelaes_export.cli import model_tables
    from accelaes_export.cli.catalogue import model, models
    from accelaes_export.cli.terminal import results

    entries = models() if name is None else (model(name),)
    if as_json:
        click.echo(json.dumps([entry.as_dict() for entry in entries], indent=2))
        return
    console = results()
    console.print(model_tables.overview(entries) if name is None else model_tables.details(entries[0]))
    if name is None:
        console.print("All about one: accelaes-export models NAME", soft_wrap=True)
    console.print("Build one: accelaes-export build --model NAME", soft_wrap=True)
