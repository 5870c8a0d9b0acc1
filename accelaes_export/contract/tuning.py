"""What tuning found for one checkpoint, as a file: plans by budget with learned coefficients, and how it was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, FiniteFloat

from accelaes_export.contract.learned import read_learned
from accelaes_export.contract.records import Record
from accelaes_export.contract.tensors import Count
from accelaes_export.policies.drift_plans import DriftSchedule
from accelaes_export.policies.plan import Plan

TUNING_VERSION = 1
Method = Literal["search", "fit"]


class Measured(Record):
    """How far held-out pictures' latents end from the teacher's: root mean square, of all and of the worst picture.

    `before`: by the plan as it was, with the rule made by hand; `after`: with the coefficients.
    """

    before: FiniteFloat = Field(ge=0)
    worst_before: FiniteFloat = Field(ge=0)
    after: FiniteFloat = Field(ge=0)
    worst_after: FiniteFloat = Field(ge=0)


class TunedPlan(Record):
    """A plan of drift's for one step budget; its letters stand for the tuning's buckets."""

    schedule: DriftSchedule
    measured: Measured


class Tuning(Record):
    """What was found.

    Attributes:
        weights_sha256: of the checkpoint, as manifests have it.
        size: in pixels, as the pipeline is asked for it.
        tokens: N.
        guidance: the scale of all runs.
        buckets: n/N below 1 that the plans' letters stand for.
        plans: by step budget.
        prompts, held_out: how many were fitted on, and measured on.
        seed: of the first noise.
        teacher_steps: dense steps of the runs that are taken for right.
        method: "search" where plans were looked for, "fit" where they were taken as they are.
        evaluations: plans tried for each budget.
        date: of the tuning, ISO.
        versions: of the packages that made it.
    """

    tuning_version: int = TUNING_VERSION
    model: str
    family: str
    weights_sha256: str
    size: dict[str, int]
    tokens: Count
    guidance: FiniteFloat
    buckets: tuple[FiniteFloat, ...]
    plans: dict[float, TunedPlan] = Field(min_length=1)
    prompts: Count
    held_out: int = Field(ge=0)
    seed: int = Field(ge=0)
    teacher_steps: Count
    method: Method = "fit"
    evaluations: int = Field(default=0, ge=0)
    date: str
    versions: dict[str, str]


def tuned_plans(tuning: Tuning, buckets: Sequence[float]) -> dict[float, DriftSchedule]:
    """The plans with letters for `buckets`; InputError for a bundle without one that a plan computes."""
    return {
        budget: replace(plan.schedule, symbols=str(Plan(plan.schedule.symbols, tuning.buckets).on(buckets)))
        for budget, plan in tuning.plans.items()
    }


def not_measured(plans: Mapping[float, DriftSchedule]) -> dict[float, DriftSchedule]:
    """The plans without what was measured of them, for another checkpoint than that."""
    return {budget: replace(plan, quality=None) for budget, plan in plans.items()}


def read_tuning(path: Path) -> Tuning:
    """The file at `path`; InputError where there is none, or it isn't one."""
    return read_learned(path, Tuning, "tuning", TUNING_VERSION, "tune")
