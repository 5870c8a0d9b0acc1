"""Do two profiles of one bundle agree within the spread they print?

    python -m benchmarks.compare_profiles first.json second.json

A figure agrees where either run's median lies between the other's 10th and 90th percentile. Exit code 1 where one
doesn't.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from accelaes_export.measure.profiling.report import ProfileReport, Spread


def figures(report: ProfileReport) -> Iterator[tuple[str, Spread]]:
    """Every spread of a profile, by name."""
    for bucket in report.buckets:
        yield f"step n = {bucket.n}, s", bucket.seconds
        yield f"step n = {bucket.n}, of dense", bucket.of_dense
    for found in (*report.policies, *report.peers):
        label = f"{found.name}, batch {found.images}"
        yield f"{label}, s", found.seconds
        if found.dense_over_this is not None:
            yield f"{label}, dense / this", found.dense_over_this


def agree(one: Spread, other: Spread) -> bool:
    """Whether either median lies within the other's spread."""
    return other.p10 <= one.median <= other.p90 or one.p10 <= other.median <= one.p90


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", type=Path, nargs=2)
    paths = parser.parse_args(arguments).profiles
    first, second = (ProfileReport.model_validate_json(path.read_text(encoding="utf-8")) for path in paths)
    others, table, differing = dict(figures(second)), Table("figure", "first", "second", "agree"), 0
    for name, one in figures(first):
        other = others.get(name)
        if other is None:
            continue
        same = agree(one, other)
        differing += not same
        table.add_row(
            name, *(f"{s.median:.4g} ({s.p10:.4g}-{s.p90:.4g})" for s in (one, other)), "yes" if same else "NO"
        )
    console = Console()
    console.print(table)
    console.print(f"{table.row_count - differing} of {table.row_count} figures agree.")
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
