"""One stage of the GPU benchmark, in a process of its own: build a model, or measure one set of policies and peers.

run.py starts it. A set's report is written when it is whole, so whatever is stopped leaves the sets before it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelaes_export import builder
from accelaes_export.bundle import open_bundle
from accelaes_export.cli.progress import TerminalProgress
from accelaes_export.cli.terminal import progress_lines, quiet_libraries
from accelaes_export.policies import AccelAes, Dense, StepCache
from accelaes_export.policies.base import Policy
from accelaes_export.profiling.profile import ProfileRequest, profile
from accelaes_export.profiling.report import write_whole
from accelaes_export.recipes import BuildRecipe
from benchmarks.gpu.models import MODELS, recipe

SETS: dict[str, tuple[tuple[Policy, ...], tuple[str, ...]]] = {
    # The plans of METHOD against the dense model that a user has without us.
    "policies": ((Dense(), StepCache(), AccelAes()), ("eager", "compile")),
    # The papers' plan, whose background is never computed again.
    "never-refreshed": ((Dense(), AccelAes(refresh_every=0)), ("compile",)),
    "caches": ((Dense(), StepCache()), ("compile", "diffusers-caches", "cache-dit")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("stage", choices=("build", *SETS))
    parser.add_argument("--output", type=Path, required=True, help="bundles, and a JSON file for every set")
    parser.add_argument("--backend", default="aoti")
    parser.add_argument("--compiling", default="", help="flags of kernel generation, as for accelaes-export build")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=float, default=1.0)
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    quiet_libraries()
    folder = asked.output / "bundles" / asked.model
    progress = TerminalProgress(progress_lines())
    if asked.stage == "build":
        build(recipe(asked.model, tiny=asked.tiny, depth=asked.depth), folder, asked, progress)
        return
    policies, against = SETS[asked.stage]
    request = ProfileRequest(policies, asked.steps, warmup=1, iterations=asked.rounds, against=against)
    measured = profile(open_bundle(folder, check_hashes=False), request, progress)
    write_whole(asked.output / f"{asked.model}.{asked.stage}.json", measured.report.model_dump_json(indent=1))


def build(wanted: BuildRecipe, folder: Path, asked: argparse.Namespace, progress: TerminalProgress) -> None:
    """The bundle, with random weights."""
    builder.build(
        model=wanted,
        backend=asked.backend,
        output=folder,
        compiling=asked.compiling or None,
        random_weights=True,
        progress=progress,
    )


if __name__ == "__main__":
    main()
