"""Every policy on the shipped checkpoint: what it costs, and how far its pictures are from exact ones.

    python -m benchmarks.policies --output benchmarks/results/policies.json
    python -m benchmarks.policies --output benchmarks/results/policies.json --times     # adds whole runs' times
    python -m benchmarks.policies --output benchmarks/results/policies.json --tables    # prints what it holds

Pictures of held-out prompts, from several noises each, against the same model's 28-step dense picture and its 160-step
one. Work is done in chunks of prompts; each is written to a folder when done, so a run that was interrupted, or asked
for more prompts or seeds, goes on where it was.

Figures of merit, all with 95 % intervals from resampling prompts:

    PSNR    of the mean squared error over all pictures, in dB
    right   share of objects whose shape, colour and texture an independent classifier reads back
    k       step equivalence: how many plain dense steps have this PSNR to the 160-step picture, over the cost
    k_theta the same against dense steps with the policy's own theta
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import accelaes_export as ax
from accelaes_export.policies import Extrapolation, Policy, options_of
from accelaes_export.recipes import BuildRecipe
from benchmarks.policy_cases import BUCKETS, CASES, CURVE, CURVE_THETA, DENSE, EXACT, TIMED, PolicyCase
from benchmarks.policy_tables import tables
from benchmarks.resampling import DRAWS, costs, curve, intervals, psnr, right, steps_of
from benchmarks.shapes_quality import HeldOut, attribute_accuracy, heldout
from benchmarks.shapes_runs import Case, console, denoise_times, flop_cost, machine, sample, write_figures

CHUNK = 16


class Work:
    """The bundles and the finished chunks in a folder: one file for a case, seed and chunk of prompts.

    Args:
        model: which the bundles are of; a folder is of one alone.
    """

    def __init__(self, folder: Path, model: str | BuildRecipe = "shapes") -> None:
        self._folder, self._model = folder, model
        self._bundles: dict[str, ax.Bundle] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def bundle(self, case: PolicyCase = DENSE, batch: int = CHUNK) -> ax.Bundle:
        """The checkpoint as a case wants it, built where the folder lacks it."""
        fractions = "" if case.buckets == BUCKETS else "".join(f"-{100 * bucket:.0f}" for bucket in case.buckets)
        ranges = "".join(f"-{first}-{last}" for first, last in case.ranges)
        name = f"bundle{fractions}{'-without' if ranges else ''}{ranges}{'' if batch == CHUNK else f'-batch-{batch}'}"
        name += "" if case.layerwise == "none" else f"-{case.layerwise}"
        if name not in self._bundles:
            folder = self._folder / name
            options: dict[str, Any] = {"buckets": case.buckets, "block_ranges": case.ranges, "output": folder}
            options |= {"layerwise": case.layerwise}
            self._bundles[name] = (
                ax.open(folder) if folder.is_dir() else ax.build(model=self._model, batch=batch, **options)
            )
        return self._bundles[name]

    @cached_property
    def _pipe(self) -> Any:
        from accelaes_export.runtime.generate import load_pipeline

        pipe = load_pipeline(self.bundle())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def pictures(self, case: PolicyCase, prompts: Sequence[HeldOut], first: int, seed: int) -> np.ndarray:
        """[P, 48, 48, 3] in [0, 1], kept for references, with what they cost."""
        made, _ = self._made(case, prompts, first, seed, keep=True)
        return made

    def errors(self, case: PolicyCase, prompts: Sequence[HeldOut], first: int, seed: int) -> dict[str, np.ndarray]:
        """Per prompt: squared errors to both references, objects and those read right; and the run's cost."""
        path = self._path("errors", case, first, seed)
        if path.is_file():
            return dict(np.load(path))
        made, costs = self._made(case, prompts, first, seed, keep=False)
        found = {"token_steps": costs[0], "flop_cost": costs[1]}
        for name, reference in (("dense", DENSE), ("exact", EXACT)):
            picture = self.pictures(reference, prompts, first, seed)
            found[name] = np.square(made - picture).mean(axis=(1, 2, 3))
        read = [attribute_accuracy(made[k : k + 1], [prompt]) for k, prompt in enumerate(prompts)]
        found["objects"] = np.array([one["objects"] for one in read])
        found["right"] = np.array([one["shape_colour_texture"] * one["objects"] for one in read])
        _write(path, found)
        return found

    def _made(
        self, case: PolicyCase, prompts: Sequence[HeldOut], first: int, seed: int, keep: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        path = self._path("pictures", case, first, seed)
        if path.is_file():
            stored = np.load(path)
            return stored["pictures"].astype(np.float32), stored["costs"]
        bundle = self.bundle(case)
        ax.accelerate(self._pipe, bundle, case.policy)
        captions = [prompt.caption for prompt in prompts]
        noise = 10_000 * seed + first
        made = sample(self._pipe, captions, case.steps, bundle, seed=noise, output="np")
        report = self._pipe.transformer.report()
        costs = np.array([report.cost, flop_cost(report, bundle)])
        if keep or case in (DENSE, EXACT):
            _write(path, {"pictures": made.astype(np.float32), "costs": costs})
        return made, costs

    def _path(self, kind: str, case: PolicyCase, first: int, seed: int) -> Path:
        return self._folder / f"{kind}-{key(case)}-{seed}-{first}.npz"


def key(case: PolicyCase) -> str:
    """What a case's chunks are called: another one for whatever makes other pictures."""
    # Without what is as by default, so that a new option leaves old chunks alone.
    ordinary = asdict(Extrapolation())
    extrapolation = {name: v for name, v in asdict(case.policy.extrapolation).items() if v != ordinary[name]}
    described: list[Any] = [type(case.policy).__name__, _changed(case.policy), extrapolation, _plan(case), case.steps]
    if case.buckets != BUCKETS:
        described.append(case.buckets)
    if case.ranges:
        described.append({"ranges": case.ranges})
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    unfinished = path.with_suffix(".part")
    with unfinished.open("wb") as file:
        np.savez(file, **arrays)
    unfinished.replace(path)


def measure(
    work: Work, cases: Mapping[str, PolicyCase], prompts: int, seeds: Sequence[int]
) -> dict[str, dict[str, np.ndarray]]:
    """Label to figures with axes [seeds, prompts]; costs are averaged over them."""
    scenes = heldout(prompts)
    found: dict[str, dict[str, list[np.ndarray]]] = {label: {} for label in cases}
    for seed in seeds:
        for first in range(0, prompts, CHUNK):
            part = scenes[first : first + CHUNK]
            for label, case in cases.items():
                for name, values in work.errors(case, part, first, seed).items():
                    found[label].setdefault(name, []).append(values)
            console.print(f"seed {seed}, prompts {first} to {first + len(part) - 1} done")
    shape = len(seeds), -1
    return {
        label: {
            name: np.mean(parts) if name in ("token_steps", "flop_cost") else np.concatenate(parts).reshape(shape)
            for name, parts in figures.items()
        }
        for label, figures in found.items()
    }


def times(work: Work, rounds: int) -> dict[str, Any]:
    """Whole denoising runs of one picture, the cases in turn in every round; the machine they ran on."""
    cases = {
        label: Case(work.bundle(CASES[label], batch=1), CASES[label].policy, CASES[label].steps) for label in TIMED
    }
    return {"machine": machine(), "rounds": rounds, "rows": denoise_times(cases, rounds)}


def summary(found: Mapping[str, Mapping[str, np.ndarray]], draws: int = DRAWS) -> list[dict[str, Any]]:
    """A row a case; intervals from resampling prompts, the same ones for every case and for the dense curves."""

    def of(pick: np.ndarray) -> dict[str, dict[str, float]]:
        curves = {
            theta: curve(found, {label: CASES[label] for label in labels}, pick)
            for theta, labels in ((0.0, CURVE), (1.0, CURVE_THETA))
        }
        rows = {}
        for label, figures in found.items():
            cost, exact = float(figures["token_steps"]), psnr(figures["exact"][:, pick])
            own = curves[1.0] if CASES[label].policy.extrapolation.theta else curves[0.0]
            rows[label] = {"psnr_to_dense": psnr(figures["dense"][:, pick]), "psnr_to_exact": exact}
            rows[label] |= {"right": right(figures, pick), "k": steps_of(exact, curves[0.0]) / cost}
            rows[label] |= {"k_theta": steps_of(exact, own) / cost}
        return rows

    rows = []
    for label, figures in intervals(found, of, draws).items():
        case = CASES[label]
        row: dict[str, Any] = {"case": label, "group": case.group, "policy": case.policy.name}
        row |= {"options": _changed(case.policy), "steps": case.steps, "plan": _plan(case)}
        rows.append(row | costs(found[label]) | figures)
    return rows


def _changed(policy: Policy) -> dict[str, Any]:
    """Options that aren't their defaults."""
    options = options_of(policy)
    symbols = options.pop("plan", None)
    options.pop("learned", None)  # what coefficients are stands in the extrapolation
    inner = getattr(policy, "policy", policy)
    asked = any(own.default is MISSING and own.default_factory is MISSING for own in fields(inner))
    ordinary = {} if asked else options_of(type(inner)())
    changed = {name: value for name, value in options.items() if name not in ordinary or value != ordinary[name]}
    return changed if symbols is None else changed | {"plan": symbols}


def _plan(case: PolicyCase) -> str:
    return "decided in the run" if case.policy.gate() else str(case.policy.plan(case.steps, case.buckets, case.shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the figures, as JSON")
    parser.add_argument("--work", type=Path, default=Path("out/policies"), help="folder of finished chunks")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--seeds", default="1,2,3", help="one noise a prompt for each of these numbers")
    parser.add_argument("--groups", default="policies,ablations", help="of the cases in benchmarks/policy_cases.py")
    parser.add_argument(
        "--times", action="store_true", help="measure the time of whole runs instead; on a quiet machine"
    )
    parser.add_argument("--rounds", type=int, default=30, help="of --times")
    parser.add_argument("--tables", action="store_true", help="only print the tables of what --output holds")
    options = parser.parse_args()
    figures = (
        json.loads(options.output.read_text(encoding="utf-8")) if options.tables or options.output.exists() else {}
    )
    if not options.tables:
        work = Work(options.work)
        if options.times:
            figures["times"] = times(work, options.rounds)
        else:
            groups = ["curves", *options.groups.split(",")]
            cases = {label: case for label, case in CASES.items() if case.group in groups}
            seeds = [int(seed) for seed in options.seeds.split(",")]
            found = measure(work, cases, options.prompts, seeds)
            figures |= {"machine": machine(), "prompts": options.prompts, "seeds": seeds, "cases": summary(found)}
        write_figures(options.output, figures)
    print(tables(figures))


if __name__ == "__main__":
    main()
