"""`accelaes-export verify`: does a bundle compute what the diffusers model computes?"""

from __future__ import annotations

from pathlib import Path

import click

from accelaes_export.cli.bundle_options import trust_options


@click.command("verify", short_help="Check a bundle's files, and its engine against the model.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    metavar="DIR_OR_HUB_ID",
    help="The weights it was built from, where they have moved. [default: where the manifest says]",
)
@trust_options
def command(bundle: Path, checkpoint: str | None, trust: tuple[str, ...], allow_code: bool) -> None:
    """Check a bundle: every file's hash, then every bucket against the diffusers model on the same inputs.

    The dense bucket is compared with the unmodified model, sparse ones with the focus step in eager float32, and every
    preset with its policy in Python, over a whole run.
    Exit code 1 where a bucket or preset is outside its tolerance, 2 where a file was altered.

    \b
    Example:
        accelaes-export verify engines/built/shapes
    """
    from accelaes_export.building.verification import verify
    from accelaes_export.bundle.reading import open_bundle
    from accelaes_export.cli import manifest_tables
    from accelaes_export.cli.progress import TerminalProgress
    from accelaes_export.cli.terminal import progress_lines, quiet_libraries, results
    from accelaes_export.errors import AccelAesError

    # Every file is hashed by `verify` itself.
    opened = open_bundle(bundle, check_hashes=False, trust=trust, allow_code=allow_code)
    if opened.manifest.components is not None:
        quiet_libraries()
    report = verify(opened, checkpoint=checkpoint, progress=TerminalProgress(progress_lines()))
    console = results()
    if report.parity:
        console.print(manifest_tables.parity(report.parity))
    if report.presets:
        console.print(manifest_tables.preset_parity(report.presets))
    if report.components:
        console.print(manifest_tables.component_parity(report.components))
    if report.skipped:
        console.print(f"Not compared: {report.skipped}", soft_wrap=True)
    if not report.passed:
        failed = [f"n = {p.bucket}" for p in report.parity if not p.passed]
        failed += [f"preset {p.name}" for p in report.presets if not p.passed]
        failed += [p.name for p in report.components if not p.passed]
        raise AccelAesError(f"Bundle {bundle} is outside the tolerance at {', '.join(failed)}; see the table.")
    things = ["bucket", *(["preset"] if report.presets else []), *(["component"] if report.components else [])]
    agreed = f"every {' and '.join(things)} agrees"
    verdict = f"whole, and {agreed}" if report.parity else "whole; its numbers were not compared"
    console.print(f"Bundle {bundle} is {verdict}.", soft_wrap=True)
