"""`accelaes-export inspect`: what a bundle is."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("inspect", short_help="Show a bundle: manifest, buckets, tensors, plan.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--steps", type=int, help="Show the plan for so many denoising steps T. [default: the bundle's]")
@click.option("--policy", metavar="NAME", help="Whose plan, as `run` has them. [default: the bundle's]")
@click.option("--tensors", is_flag=True, help="List every cache tensor instead of one line for all layers.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON, and nothing else.")
def command(bundle: Path, steps: int | None, policy: str | None, tensors: bool, as_json: bool) -> None:
    """Show a bundle: its manifest, buckets, plans by budget, tensor table and plan.

    Opens no engine, so it works on any machine.

    \b
    Examples:
        accelaes-export inspect engines/built/shapes
        accelaes-export inspect engines/built/shapes --steps 28 --policy accelaes
        accelaes-export inspect engines/built/shapes --json
    """
    from accelaes_export.bundle.reading import open_bundle

    opened = open_bundle(bundle, check_hashes=False)
    manifest = opened.manifest
    if as_json:
        click.echo(json.dumps(manifest.model_dump(mode="json"), indent=2))  # in ASCII, for terminals of any encoding
        return
    from accelaes_export.cli import manifest_tables
    from accelaes_export.cli.policy_options import default_plan
    from accelaes_export.cli.terminal import results
    from accelaes_export.cli.timeline import timeline
    from accelaes_export.errors import BundleError
    from accelaes_export.runtime.policy_choice import policy_for, steps_alone

    plan, whose = default_plan(manifest), manifest.defaults.policy
    if steps is not None or policy is not None:
        chosen = policy_for(manifest, policy)
        T = steps_alone(chosen, steps, manifest.defaults.steps)
        plan = chosen.plan(T, manifest.sparse_fractions, manifest.range_shares)
        whose = chosen.name
    console = results()
    console.print(manifest_tables.overview(opened))
    console.print()
    console.print(manifest_tables.buckets(manifest))
    console.print()
    left_out = manifest_tables.ranges(manifest.geometry)
    if left_out is not None:
        console.print(left_out)
        console.print()
    layered = manifest_tables.layerwise(manifest.geometry)
    if layered is not None:
        console.print(layered)
        console.print()
    console.print(manifest_tables.budgets(manifest))
    console.print()
    presets = manifest_tables.presets(manifest)
    if presets is not None:
        console.print(presets)
        console.print()
    components = manifest_tables.components(manifest)
    if components is not None:
        console.print(components)
        console.print()
    console.print(manifest_tables.tensors(manifest.geometry.contract, every_layer=tensors))
    console.print()
    if manifest.geometry.parity:
        console.print(manifest_tables.parity(manifest.geometry.parity, manifest.measured_on))
        console.print()
    console.print(f"Plan of {whose}, {len(plan)} steps")
    console.print(timeline(plan))
    try:
        opened.check_fit()
    except BundleError as error:
        console.print(f"\nDoes not run here: {error}", style="yellow", soft_wrap=True)
