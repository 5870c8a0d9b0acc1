"""Layer-wise schedules on the shipped checkpoint: DiffSparse beside schedules that weren't learned, at one budget.

    python -m benchmarks.sparsity --output FILE --schedules FOLDER
    python -m benchmarks.sparsity --output FILE --tables    # prints what it holds

The folder has files that `tune` wrote, NAME.schedule.json. The pictures are those of benchmarks/policies.py, of prompts
that no schedule may have been learned on: 128 held-out ones from three noises each, against as many dense steps as the
schedules have, and against the model's 160-step picture. Finished chunks are kept as there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accelaes_export.contract.schedules import ScheduleFile, read_schedule
from accelaes_export.policies import DiffSparse, Drift, FewerSteps
from benchmarks.policies import CHUNK, Work, measure
from benchmarks.policy_cases import DENSE, PolicyCase
from benchmarks.policy_tables import sample_of, written
from benchmarks.resampling import DRAWS, Found, costs, curve, intervals, psnr, right, steps_of
from benchmarks.shapes_quality import heldout
from benchmarks.shapes_runs import machine, write_figures

PLAIN = (*range(6, 22, 2), 24, 32, 36)
"""Dense steps that k is read from, beside 28."""
BESIDE = {"dense, 9 steps": PolicyCase(FewerSteps(budget=9), 9, "beside")}
BESIDE |= {"drift, budget 9": PolicyCase(Drift(budget=9), Drift(budget=9).own_steps or 28, "beside")}

COLUMNS = (
    "| case | cost | by FLOPs | PSNR to {T} steps | median | worst | PSNR to 160 steps | right | k |\n|" + "---|" * 9
)


def schedules(folder: Path) -> dict[str, ScheduleFile]:
    """Files by name."""
    return {
        path.name.removesuffix(".schedule.json"): read_schedule(path) for path in sorted(folder.glob("*.schedule.json"))
    }


def cases(found: Mapping[str, ScheduleFile]) -> dict[str, PolicyCase]:
    """Plain dense steps, what others make of as much, and every schedule."""
    plain = {f"dense, {T} steps": PolicyCase(FewerSteps(budget=T), T, "plain") for T in PLAIN}
    plain["dense, 28 steps"] = PolicyCase(DENSE.policy, 28, "plain")
    layered = {
        f"{name}: {own.method}, {own.schedule.ranking}": PolicyCase(
            DiffSparse(own.schedule), own.schedule.steps, "layered", layerwise=own.schedule.ranking
        )
        for name, own in found.items()
    }
    return plain | BESIDE | layered


def to_dense(work: Work, given: Mapping[str, PolicyCase], prompts: int, seeds: Sequence[int], steps: int) -> Any:
    """By label: squared errors [seeds, prompts] to the pictures of so many dense steps."""
    scenes, reference = heldout(prompts), PolicyCase(FewerSteps(budget=steps), steps, "plain")
    found: dict[str, np.ndarray] = {}
    for label, case in given.items():
        if case.group == "plain":
            continue
        rows = [
            np.concatenate(
                [
                    np.square(
                        work.pictures(case, scenes[first : first + CHUNK], first, seed)
                        - work.pictures(reference, scenes[first : first + CHUNK], first, seed)
                    ).mean(axis=(1, 2, 3))
                    for first in range(0, prompts, CHUNK)
                ]
            )
            for seed in seeds
        ]
        found[label] = np.stack(rows)
    return found


def summary(
    found: Found, near: Mapping[str, np.ndarray], given: Mapping[str, PolicyCase], draws: int = DRAWS
) -> list[dict[str, Any]]:
    """A row a schedule and what stands beside them, nearest first."""
    plain = {label: case for label, case in given.items() if case.group == "plain"}

    def of(pick: np.ndarray) -> dict[str, dict[str, float]]:
        own_curve = curve(found, plain, pick)
        rows = {}
        for label, own in near.items():
            figures, errors = found[label], own[:, pick]
            exact = psnr(figures["exact"][:, pick])
            rows[label] = {"psnr_to_dense": psnr(errors), "median": psnr(np.median(errors))}
            rows[label] |= {"worst": psnr(errors.max()), "psnr_to_exact": exact, "right": right(figures, pick)}
            rows[label] |= {"k": steps_of(exact, own_curve) / float(figures["token_steps"])}
        return rows

    rows = [
        {"case": label, "group": given[label].group, **costs(found[label]), **figures}
        for label, figures in intervals(found, of, draws).items()
    ]
    return sorted(rows, key=lambda row: -row["psnr_to_dense"]["value"])


def tables(figures: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [COLUMNS.format(T=figures["steps"])]
    for row in figures["cases"]:
        cells = [row["case"], f"{row['token_steps']:.4g}", f"{row['flop_cost']:.4g}"]
        cells += [written(row[name], ".1f") for name in ("psnr_to_dense", "median")]
        cells += [f"{row['worst']['value']:.1f}", written(row["psnr_to_exact"], ".1f")]
        cells += [written(row["right"], ".3f"), written(row["k"], ".2f")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n\n".join([sample_of(figures), "\n".join(lines)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the figures, as JSON")
    parser.add_argument("--schedules", type=Path, help="folder of NAME.schedule.json")
    parser.add_argument("--work", type=Path, default=Path("out/policies"), help="folder of finished chunks")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--seeds", default="1,2,3", help="one noise a prompt for each of these numbers")
    parser.add_argument("--tables", action="store_true", help="only print the tables of what --output holds")
    options = parser.parse_args()
    if not options.tables:
        read = schedules(options.schedules)
        given, seeds = cases(read), [int(seed) for seed in options.seeds.split(",")]
        (steps,) = {own.schedule.steps for own in read.values()}
        work = Work(options.work)
        near = to_dense(work, given, options.prompts, seeds, steps)
        found = measure(work, given, options.prompts, seeds)
        figures = {"machine": machine(), "prompts": options.prompts, "seeds": seeds, "steps": steps}
        figures |= {"cases": summary(found, near, given)}
        write_figures(options.output, figures)
    print(tables(json.loads(options.output.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
