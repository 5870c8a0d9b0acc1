"""`tune --method diffsparse` and the methods it is compared with: a layer-wise schedule, and a picture of it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelaes_export.errors import InputError, MissingComponentError

if TYPE_CHECKING:
    from accelaes_export.bundle.reading import Bundle
    from accelaes_export.contract.manifest import Manifest
    from accelaes_export.sparsity.distances import Distance


@dataclass(frozen=True)
class Asked:
    """What the command line says; None: the default."""

    method: str
    budget: str | None
    evaluations: int
    steps: int | None
    iterations: int | None
    distance: str | None
    seed: int
    guidance: float | None
    checkpoint: str | None


def learn_schedule(bundle: Bundle, prompts: Path, asked: Asked, output: Path) -> None:
    """Learn a schedule, and write it and its heat map; what is done is kept beside them until they are there."""
    from accelaes_export.cli.progress import TerminalProgress
    from accelaes_export.cli.terminal import progress_lines, quiet_libraries, results
    from accelaes_export.files.replacing import remove
    from accelaes_export.files.writing import check_writable, whole_file, write_whole
    from accelaes_export.measure.quality.prompts import read_prompts
    from accelaes_export.sparsity.heat_map import heat_map
    from accelaes_export.sparsity.learner import SparsityRequest, check, learn
    from accelaes_export.sparsity.tables import by_kind, heading, measured
    from accelaes_export.sparsity.training import Learning

    picture = output.with_suffix(".png")
    if picture == output:
        raise InputError(f"{output} is where the schedule's picture would be; give the schedule another name.")
    check_writable(output, picture)
    request = SparsityRequest(
        prompts=read_prompts(prompts),
        budget=_share(asked.budget),
        steps=20 if asked.steps is None else asked.steps,
        method=asked.method,  # type: ignore[arg-type]
        evaluations=asked.evaluations,
        learning=Learning() if asked.iterations is None else Learning(iterations=asked.iterations),
        guidance=asked.guidance,
        seed=asked.seed,
        checkpoint=asked.checkpoint,
    )
    check(bundle, request)
    distance = _distance(asked.distance, bundle.manifest)
    quiet_libraries()
    keep = output.with_name(f"{output.name}.part")
    found = learn(bundle, request, TerminalProgress(progress_lines()), distance=distance, keep=keep)
    title = f"{found.model}, {found.method}: {found.schedule.share:.0%} of {found.schedule.steps} steps"
    drawn = io.BytesIO()
    heat_map(found.schedule, title).save(drawn, format="png")
    with whole_file(picture) as file:
        file.write(drawn.getvalue())
    write_whole(output, found.model_dump_json(indent=1) + "\n")
    remove(keep)
    console = results()
    console.print(by_kind(found.schedule))
    console.print(heading(found), soft_wrap=True)
    console.print(measured(found))
    console.print(f"Wrote {output}, {picture}", soft_wrap=True)
    console.print(f"Next: accelaes-export run BUNDLE --policy diffsparse --schedule {output}", soft_wrap=True)


def _share(written: str | None) -> float:
    """The budget of a layer-wise schedule; InputError unless it is one number."""
    try:
        return float(written) if written is not None else 0.46
    except ValueError:
        raise InputError(
            f"The budget is {written!r}; a layer-wise schedule takes one share of the tokens, such as 0.46."
        ) from None


def _distance(name: str | None, manifest: Manifest) -> Any:
    """From the pipeline, the distance of that name."""
    from accelaes_export.measure.quality.distances import lpips_between
    from accelaes_export.measure.quality.metrics import MetricAbsentError
    from accelaes_export.sparsity import distances

    if name is None:
        try:
            return partial(_of_pictures, "lpips", lpips_between(), manifest)
        except MetricAbsentError:
            name = distances.LATENTS
    if name == distances.LATENTS:
        return lambda pipe: distances.of_latents()
    try:
        between = lpips_between() if name == "lpips" else distances.named(name)
    except MetricAbsentError as absent:
        raise MissingComponentError(f"LPIPS can't be measured: {absent.reason}; {absent.remedy}.") from absent
    return partial(_of_pictures, name, between, manifest)


def _of_pictures(name: str, between: Any, manifest: Manifest, pipe: Any) -> Distance:
    from accelaes_export.sparsity.distances import of_pictures

    return of_pictures(name, between, manifest, pipe)
