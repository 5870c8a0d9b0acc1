"""What `run` writes and prints once a picture or video is made."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from accelaes_export.contract.manifest import Manifest
from accelaes_export.errors import InputError
from accelaes_export.files.writing import write_whole
from accelaes_export.policies import Plan, Policy, StepKind

if TYPE_CHECKING:
    from accelaes_export.runtime.generate import GenerationResult
    from accelaes_export.runtime.report import RunReport

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_ANIMATIONS = (".png", ".webp", ".gif")


def require_image_path(path: Path | None, *, video: bool = False) -> None:
    """InputError where no picture, or no video as an animated picture, could be saved at `path`."""
    allowed, kind = (_ANIMATIONS, "animated") if video else (_PICTURES, "picture")
    if path is not None and path.suffix.lower() not in allowed:
        raise InputError(f"{path} names no {kind} format; end it with one of {', '.join(allowed)}.")


def require_mask(policy: str, plan: Plan) -> None:
    """InputError where a run of `plan` has no focus tokens that could be shown."""
    if not plan.count(StepKind.SPARSE):
        raise InputError(
            f"Policy {policy} has no sparse step here, so --mask-out has no focus tokens to show; use accelaes, drift "
            "or ras."
        )


def decided_later(policy: Policy) -> str:
    """What the heading of a plan adds where the data decides what is skipped."""
    return ", of which the run skips some" if policy.gate() is not None else ""


def save(
    result: GenerationResult, manifest: Manifest, output: Path, mask_out: Path | None, trace: Path | None
) -> list[Path]:
    """Write the picture and what else was asked for; returns the paths written. Folders are made as needed."""
    from accelaes_export.runtime.images import mask_overlays, save_images

    written = [output]
    frames, focus_index = result.frames, result.report.focus_index
    save_images(frames, output)
    if mask_out is not None and focus_index is not None:
        save_images(mask_overlays(frames, focus_index[0], manifest.geometry.latents), mask_out)
        written.append(mask_out)
    if trace is not None:
        write_whole(trace, json.dumps(result.report.as_dict(), indent=2) + "\n")
        written.append(trace)
    return written


def step_times(report: RunReport) -> Table:
    """Median and total time of each kind of step that occurred."""
    table = Table("step", "count", "n", "median ms", "total ms", title="Step times", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for kind in StepKind:
        of_kind = [step for step in report.steps if step.kind is kind]
        if not of_kind:
            continue
        times = [1e3 * step.seconds for step in of_kind]
        n = ", ".join(str(count) for count in sorted({step.n for step in of_kind}))
        counted = (str(len(of_kind)), n, f"{statistics.median(times):.1f}", f"{sum(times):.1f}")
        table.add_row(kind.name.lower(), *counted)
    table.add_row("all", str(len(report.steps)), "", "", f"{1e3 * report.seconds:.1f}")
    return table


def summary(report: RunReport) -> Iterator[str]:
    """Computed token-steps against dense, what couldn't be done, and the words behind the mask."""
    share = report.cost / report.dense_cost if report.dense_cost else 0.0
    yield f"Computed {report.cost:g} of {report.dense_cost:g} dense steps' tokens ({share:.0%})."
    if report.graphs.captured or report.graphs.replayed:
        yield f"CUDA graphs: {report.graphs.captured} captured, {report.graphs.replayed} calls replayed."
    for note in report.notes:
        yield f"Otherwise than asked for: {note}."
    for words in report.words:
        yield f"Words behind the mask: {words}"
