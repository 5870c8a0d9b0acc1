"""A learned layer-wise schedule as a file: shares by step and part, for which checkpoint, and how it was found."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, FiniteFloat

from accelaes_export.contract.learned import read_learned
from accelaes_export.contract.records import Record
from accelaes_export.contract.tensors import Count
from accelaes_export.policies.layer_schedule import LayerSchedule

SCHEDULE_VERSION = 1
ScheduleMethod = Literal["diffsparse", "random", "greedy", "evolutionary", "uniform"]


class Distances(Record):
    """How far held-out pictures are from those of as many dense steps, by the named distance: mean and worst."""

    mean: FiniteFloat = Field(ge=0)
    worst: FiniteFloat = Field(ge=0)


class ScheduleFile(Record):
    """What was found.

    Attributes:
        weights_sha256: of the checkpoint, as manifests have it.
        size: in pixels, as the pipeline is asked for it.
        tokens: N.
        guidance: the scale of all runs.
        budget: share of the parts' tokens that may be computed, all steps together.
        method: how it was found.
        distance: what was made small, by name.
        measured: the schedule on held-out prompts; `uniform`: the same share in every part there.
        prompts, held_out: how many were learned on, and measured on.
        evaluations: runs of pictures that the method took.
        seed: of the first noise.
        date: ISO.
        versions: of the packages that made it.
    """

    schedule_version: int = SCHEDULE_VERSION
    model: str
    family: str
    weights_sha256: str
    size: dict[str, int]
    tokens: Count
    guidance: FiniteFloat
    budget: FiniteFloat = Field(gt=0, le=1)
    method: ScheduleMethod
    distance: str
    schedule: LayerSchedule
    measured: Distances | None = None
    uniform: Distances | None = None
    prompts: Count
    held_out: int = Field(ge=0)
    evaluations: int = Field(ge=0)
    seed: int = Field(ge=0)
    date: str
    versions: dict[str, str]


def read_schedule(path: Path) -> ScheduleFile:
    """The file at `path`; InputError where there is none, or it isn't one."""
    return read_learned(path, ScheduleFile, "schedule", SCHEDULE_VERSION, "tune --method diffsparse")
