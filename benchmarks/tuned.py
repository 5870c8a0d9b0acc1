"""Tuned plans on the shipped checkpoint: k over plain dense steps, and over dense steps with fitted weights.

    python -m benchmarks.tuned --output FILE --tuning shapes.tuning.json --fitted dense.tuning.json
    python -m benchmarks.tuned --output FILE --tables    # prints what it holds

The pictures and figures are those of benchmarks/policies.py, of prompts that no tuning may have seen: 128 held-out ones
from three noises each, against the model's 160-step picture. Finished chunks are kept as there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accelaes_export.contract.tuning import read_tuning
from accelaes_export.policies import Drift, FewerSteps, Policy, from_name
from benchmarks.policies import Work, measure
from benchmarks.policy_cases import DENSE, PolicyCase
from benchmarks.policy_tables import sample_of, written
from benchmarks.resampling import DRAWS, Found, costs, curve, intervals, psnr, right, steps_of
from benchmarks.shapes_runs import machine, write_figures

PLAIN = (*range(6, 22, 2), 24, 32, 36, 48, 64)
"""Dense steps that k is read from, beside 28."""

COLUMNS = "| case | T | cost | PSNR to 160 steps | median | worst | right | k | k over dense, fitted |\n|" + "---|" * 9


def cases(tuning: Path | None, fitted: Path | None) -> dict[str, PolicyCase]:
    """Plain dense steps, dense steps with fitted weights, drift as it is, and tuned."""
    found = {f"dense, {T} steps": PolicyCase(FewerSteps(budget=T), T, "plain") for T in PLAIN}
    found |= {"dense, 28 steps": PolicyCase(DENSE.policy, 28, "plain")}
    for path, group in ((fitted, "fitted"), (tuning, "tuned")):
        for budget, plan in {} if path is None else read_tuning(path).plans.items():
            own = plan.schedule
            T = len(own.symbols)
            label = f"dense, fitted, {T} steps" if group == "fitted" else f"drift, tuned, budget {budget:g}"
            found[label] = PolicyCase(policy_of(own), T, group)
            if group == "tuned":
                hand = Drift(budget=budget)
                found[f"drift, budget {budget:g}"] = PolicyCase(hand, hand.own_steps or 28, "hand")
    return found


def policy_of(schedule: Any) -> Policy:
    options = {"theta": schedule.theta, "trend": schedule.trend, "cache_reach": schedule.cache_reach}
    return from_name("drift", options | {"plan": schedule.symbols, "learned": schedule.coefficients})


def summary(found: Found, given: Mapping[str, PolicyCase], draws: int = DRAWS) -> list[dict[str, Any]]:
    """A row a case, dearest last."""
    groups = {
        group: {label: given[label] for label in found if given[label].group == group} for group in ("plain", "fitted")
    }

    def of(pick: np.ndarray) -> dict[str, dict[str, float]]:
        curves = {group: curve(found, own, pick) for group, own in groups.items()}
        rows = {}
        for label, own in found.items():
            errors, cost = own["exact"][:, pick], float(own["token_steps"])
            rows[label] = {"psnr": psnr(errors), "median": psnr(np.median(errors)), "worst": psnr(errors.max())}
            rows[label] |= {"right": right(own, pick), "k": steps_of(psnr(errors), curves["plain"]) / cost}
            rows[label] |= {"k_fitted": steps_of(psnr(errors), curves["fitted"]) / cost if curves["fitted"] else 0.0}
        return rows

    rows = [
        {
            "case": label,
            "group": given[label].group,
            "plan": str(given[label].policy.plan(given[label].steps, given[label].buckets)),
            **costs(found[label]),
            **figures,
        }
        for label, figures in intervals(found, of, draws).items()
    ]
    return sorted(rows, key=lambda row: (row["token_steps"], row["group"]))


def tables(figures: Mapping[str, Any]) -> str:
    """Markdown: every case, and the plans that were found."""
    rows = figures["cases"]
    lines = [COLUMNS]
    for row in rows:
        cells = [row["case"], str(len(row["plan"])), f"{row['token_steps']:.4g}"]
        cells += [written(row[name], ".1f") for name in ("psnr", "median")] + [f"{row['worst']['value']:.1f}"]
        cells += [written(row["right"], ".3f"), written(row["k"], ".2f"), written(row["k_fitted"], ".2f")]
        lines.append(f"| {' | '.join(cells)} |")
    plans = ["| case | plan |", "|---|---|"]
    plans += [f"| {row['case']} | `{row['plan']}` |" for row in rows if row["group"] == "tuned"]
    return "\n\n".join([sample_of(figures), "\n".join(lines), "\n".join(plans)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the figures, as JSON")
    parser.add_argument("--tuning", type=Path, help="of drift's plans")
    parser.add_argument("--fitted", type=Path, help="a tuning of dense plans")
    parser.add_argument("--work", type=Path, default=Path("out/policies"), help="folder of finished chunks")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--seeds", default="1,2,3", help="one noise a prompt for each of these numbers")
    parser.add_argument("--tables", action="store_true", help="only print the tables of what --output holds")
    options = parser.parse_args()
    if not options.tables:
        given, seeds = cases(options.tuning, options.fitted), [int(seed) for seed in options.seeds.split(",")]
        found = measure(Work(options.work), given, options.prompts, seeds)
        figures = {"machine": machine(), "prompts": options.prompts, "seeds": seeds, "cases": summary(found, given)}
        write_figures(options.output, figures)
    print(tables(json.loads(options.output.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
