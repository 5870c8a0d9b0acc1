"""`accelaes-export sdk`: the native runtime's sources."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("sdk", short_help="Write the native runtime's headers, sources and build script.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write, new or empty.",
    metavar="DIR",
)
def command(output: Path) -> None:
    """Write libaccelaes: a C interface that carries out a bundle's presets without Python.

    \b
    Example: build it, then link against it.
        accelaes-export sdk -o accelaes-sdk
        accelaes-sdk/build.sh /opt/accelaes
    """
    from accelaes_export.native_sdk import BUILD_SCRIPT, lay_out

    lay_out(output)
    click.echo(f"Wrote {click.format_filename(output)}")
    click.echo(f"Next: {click.format_filename(output / BUILD_SCRIPT)} PREFIX")
