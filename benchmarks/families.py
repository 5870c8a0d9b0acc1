"""Tuning, policies and masks on trained models of other families: what was found on the shipped one, is it so on them?

    python -m benchmarks.families pixart --output benchmarks/results/pixart.json
    python -m benchmarks.families flux --output benchmarks/results/flux.json
    python -m benchmarks.families pixart --output benchmarks/results/pixart.json --tables    # prints what it holds

Unattended: bundles are built of the checkpoint (examples/shapes/train.py makes it), `tune` finds drift's plans, fits
dense ones and learns a layer-wise schedule with its defaults, and then all of them draw what benchmarks/policies.py has
its figures of: 128 held-out prompts from three noises each. What is done is kept in the work folder, where the same
command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import accelaes_export as ax
from accelaes_export import recipes
from accelaes_export.contract.schedules import read_schedule
from accelaes_export.policies import AccelAes, DiffSparse, Policy, SpatialGuidance, StepCache
from accelaes_export.recipes import BuildRecipe
from benchmarks import tuned
from benchmarks.policies import Work, measure
from benchmarks.policy_cases import PolicyCase
from benchmarks.processes import measured
from benchmarks.shapes_quality import RandomFocus
from benchmarks.shapes_runs import console, machine, masks, write_figures
from examples.shapes.captions import heldout_prompts
from examples.shapes.tokenizer import LENGTH

PUBLISHED = {"pixart": "pixart-sigma", "flux": "flux-dev"}
"""The recipe that a family's checkpoint is built by; what the small pictures want otherwise is the shipped one's."""

CHECKPOINTS = Path(__file__).parents[1] / "examples" / "shapes" / "checkpoints"
AS_SHIPPED = ("resolution", "dtype", "steps", "guidance", "policy", "anchors", "token_scorer", "vae_scale")
FITTED = 6, 8, 10, 12, 14, 17, 20, 24
"""Dense steps that weights are fitted for."""

BUDGETS = "6,8,10,12,14"
TUNED_BY = 64
"""Pictures that a call of the bundle has which `tune` finds plans on."""

GUIDED = (7, 1), (6, 3)
"""Scales on the mask and beside it: as published for Lumina, and nearer to the plain one of 4.5."""

MASK_COLUMNS = "| weights | objects' tokens in the mask | chance | AUC |\n|" + "---|" * 4


def recipe(family: str, checkpoint: Path) -> BuildRecipe:
    """What a checkpoint of examples/shapes/train.py is built by."""
    published, shipped = recipes.load(PUBLISHED[family]), recipes.load("shapes")
    changes: dict[str, Any] = {name: getattr(shipped, name) for name in AS_SHIPPED}
    changes |= {"text": [{"tokenizers": published.text[-1].tokenizers, "length": LENGTH}]}
    return published.override(checkpoint=str(checkpoint), plans={}, affinity_every=1, **changes)


def learned(work: Work, folder: Path) -> dict[str, Any]:
    """Let `tune` make its files in a folder; seconds and memory of those that were made in one go."""
    wide, layered = work.bundle(batch=TUNED_BY), work.bundle(PolicyCase(AccelAes(), layerwise="similarity"), batch=1)
    prompts = list(dict.fromkeys(heldout_prompts(TUNED_BY, seed=2)))
    fitted = [argument for steps in FITTED for argument in ("--plan", "D" * steps)]
    some = prompts[:48]  # as many as schedules of the shipped checkpoint are learned by
    return {
        "tuning": _tuned(folder / "tuning.json", wide, prompts, "--budgets", BUDGETS),
        "fitted": _tuned(folder / "fitted.json", wide, prompts, *fitted),
        "diffsparse": _tuned(folder / "diffsparse.json", layered, some, "--method", "diffsparse", "--budget", "0.46"),
    }


def _tuned(made: Path, bundle: ax.Bundle, prompts: Sequence[str], *arguments: str) -> dict[str, float]:
    """Run `accelaes-export tune`; what it took."""
    spent = made.with_suffix(".spent.json")
    if not (made.is_file() and spent.is_file()):
        given = made.with_suffix(".txt")
        given.write_text("\n".join(prompts) + "\n", encoding="utf-8")
        command = (Path(sys.executable).with_name("accelaes-export"), "tune", bundle.path, "--prompts", given)
        took = measured([*command, *arguments, "-o", made], "tune")
        figures = {"seconds": took.seconds, "peak_gib": took.peak / 2**30}
        spent.write_text(json.dumps(figures), encoding="utf-8")
    return dict(json.loads(spent.read_text(encoding="utf-8")))


def cases(folder: Path, *, paired: bool) -> dict[str, PolicyCase]:
    """Those of benchmarks/tuned.py, the other policies, and the learned schedule; guidance by region where there are
    pairs."""
    schedule = read_schedule(folder / "diffsparse.json").schedule
    others: dict[str, Policy] = {
        "stepcache": StepCache(),
        "accelaes, p = .5": AccelAes(),
        "accelaes, p = .75": AccelAes(skip_ratio=0.75),
        "accelaes, p = .5, random mask": RandomFocus(),
    }
    if paired:
        others |= {
            f"accelaes, p = .5, guided by {focus:g} and {rest:g}": AccelAes(spatial_cfg=SpatialGuidance(focus, rest))
            for focus, rest in GUIDED
        }
    found = {label: PolicyCase(policy) for label, policy in others.items()}
    found["diffsparse, .46 of 20 steps"] = PolicyCase(DiffSparse(schedule), schedule.steps, layerwise=schedule.ranking)
    return tuned.cases(folder / "tuning.json", folder / "fitted.json") | found


def tables(figures: Mapping[str, Any]) -> str:
    """Markdown: every case and the plans that were found, and where the mask lies."""
    lines = [MASK_COLUMNS]
    for row in figures["mask"]:
        lines.append(f"| {row['weights']} | {row['hit_rate']:.0%} | {row['chance']:.0%} | {row['auc']:.2f} |")
    return "\n\n".join([tuned.tables(figures), "\n".join(lines)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=PUBLISHED)
    parser.add_argument("--output", type=Path, required=True, help="the figures, as JSON")
    parser.add_argument("--checkpoint", type=Path, help="default: examples/shapes/checkpoints/FAMILY")
    parser.add_argument("--work", type=Path, help="folder of bundles and finished chunks; default: out/FAMILY")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--seeds", default="1,2,3", help="one noise a prompt for each of these numbers")
    parser.add_argument("--tables", action="store_true", help="only print the tables of what --output holds")
    options = parser.parse_args()
    if not options.tables:
        folder = options.work or Path("out") / options.family
        built_by = recipe(options.family, options.checkpoint or CHECKPOINTS / options.family)
        work, seeds = Work(folder, built_by), [int(seed) for seed in options.seeds.split(",")]
        spent = learned(work, folder)
        given = cases(folder, paired=work.bundle().manifest.call.guidance.pairs)
        found = measure(work, given, options.prompts, seeds)
        figures = {"machine": machine(), "prompts": options.prompts, "seeds": seeds, "spent": spent}
        figures |= {"cases": tuned.summary(found, given), "mask": masks(work.bundle(), options.prompts)}
        write_figures(options.output, figures)
    console.print(tables(json.loads(options.output.read_text(encoding="utf-8"))), soft_wrap=True)


if __name__ == "__main__":
    main()
