"""Presets: policies that a bundle has as graphs, for runtimes without a policy's code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, FiniteFloat

from accelaes_export.contract.records import Record
from accelaes_export.contract.tensors import Count, TensorSpec
from accelaes_export.policies.words import WordScoring


class GraphRecord(Record):
    """A graph beside the focus step: its files in the bundle, and its tensors in the engine's order."""

    files: tuple[str, ...] = Field(min_length=1)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class FocusChoice(Record):
    """Which tokens sparse steps compute: the n of the largest score, ties to the lower index.

    Attributes:
        moving: anew at every sparse step, whose cached tensors are then written back; otherwise once, by the affinity.
        mask_step: the step whose affinity is observed, or None.
        fraction: n/N of the mask made of it.
    """

    moving: bool
    mask_step: int | None = Field(default=None, ge=0)
    fraction: FiniteFloat = Field(gt=0, le=1)


class Preset(Record):
    """A policy with its options, and everything a runtime needs to carry it out.

    Attributes:
        name: as the build was asked for it, such as "drift:budget=12".
        policy, options: what that is.
        steps: T where nobody asks for another.
        plans: T to the plan's symbols, for every T it can plan from 2 to 100.
        clock: what its clock counts, step indices or sigmas.
        theta: how far past a step the prediction fed to the scheduler is extrapolated, in steps; 0 with schedulers of a
            higher order.
        words: which words of a prompt weigh.
        focus: which tokens sparse steps compute, or None where no step is sparse.
        state: what is kept from step to step, all zeros at first: the inputs of programs that `advance`,
            `advance_focus`, `decide` and `observe` make anew.
        programs: by name; see accelaes_export.policies.programs.
    """

    name: str
    policy: str
    options: dict[str, Any]
    steps: Count
    plans: dict[int, str] = Field(min_length=1)
    clock: Literal["step", "sigma"]
    theta: FiniteFloat = Field(ge=0, le=1)
    words: WordScoring
    focus: FocusChoice | None
    state: tuple[TensorSpec, ...]
    programs: dict[str, GraphRecord]


def preset_files(presets: Iterable[Preset]) -> tuple[str, ...]:
    """The files of all their programs, each once."""
    return tuple(
        dict.fromkeys(name for preset in presets for graph in preset.programs.values() for name in graph.files)
    )
