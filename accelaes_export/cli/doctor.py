"""`accelaes-export doctor`: what this machine can do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from accelaes_export.cli.diagnosis import Diagnosis


@click.command("doctor", short_help="Show what this machine can build and run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(as_json: bool) -> None:
    """Show which backends, GPUs and versions are usable here, and for each that isn't, why and what would mend it.

    Exit code 4 where no backend can run a bundle.

    \b
    Example:
        accelaes-export doctor
    """
    from accelaes_export.cli.diagnosis import diagnose
    from accelaes_export.errors import MissingComponentError

    diagnosis = diagnose()
    if as_json:
        click.echo(json.dumps(diagnosis.as_dict(), indent=2))
    else:
        _print(diagnosis)
    if not diagnosis.can_run:
        raise MissingComponentError('No backend can run a bundle here; pip install "accelaes-export[cpu]" brings one.')


def _print(diagnosis: Diagnosis) -> None:
    from rich.table import Table

    from accelaes_export.cli.terminal import results

    console = results()
    table = Table("backend", "builds", "runs", "versions", "why not, and what mends it", title="Backends")
    table.title_justify = "left"
    for name, availability in diagnosis.backends.items():
        versions = ", ".join(f"{package} {version}" for package, version in availability.versions.items())
        remedy = "\n".join(part for part in (availability.reason, availability.remedy) if part)
        table.add_row(name, _yes(availability.can_build), _yes(availability.can_run), versions, remedy)
    console.print(table)
    console.print()
    for gpu in diagnosis.gpus:
        console.print(
            f"GPU       {gpu.name}, {gpu.capability}, {gpu.memory_mb} MB, driver {gpu.driver}", soft_wrap=True
        )
    if not diagnosis.gpus:
        console.print(f"GPU       none: {diagnosis.gpu_note}", soft_wrap=True)
    console.print(f"Plugin    {diagnosis.plugin}", soft_wrap=True)
    versions = ", ".join(f"{package} {version or 'missing'}" for package, version in diagnosis.versions.items())
    console.print(f"Versions  {versions}", soft_wrap=True)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
