"""One stage of the GPU benchmark, in a process of its own: build a model, check it, or measure one set against it.

run.py starts it. What a stage found is written as it goes, so whatever is stopped leaves all it had.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelaes_export.building import builder
from accelaes_export.bundle.reading import open_bundle
from accelaes_export.cli.progress import TerminalProgress
from accelaes_export.cli.terminal import progress_lines, quiet_libraries
from accelaes_export.files.writing import write_whole
from accelaes_export.measure.profiling.profile import ProfileRequest, profile
from accelaes_export.measure.profiling.report import ProfileReport
from accelaes_export.policies import AccelAes, Dense, Drift, StepCache
from accelaes_export.policies.base import Policy
from benchmarks.gpu.checks import Checks
from benchmarks.gpu.models import recipe, split

SETS: dict[str, tuple[tuple[Policy, ...], tuple[str, ...]]] = {
    # The plans of docs/method.md against the dense model that a user has without us.
    "policies": ((Dense(), StepCache(), AccelAes(), Drift(budget=12)), ("eager", "compile")),
    # The papers' plan, whose background is never computed again.
    "never-refreshed": ((Dense(), AccelAes(refresh_every=0)), ("compile",)),
    "caches": ((Dense(), StepCache()), ("compile", "diffusers-caches", "cache-dit")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="NAME, or NAME@DEPTH for a share of its blocks")
    parser.add_argument("stage", choices=("build", "check", *SETS))
    parser.add_argument("--work", type=Path, required=True, help="bundles, and a JSON file for every stage")
    parser.add_argument("--backend", default="aoti")
    parser.add_argument("--compiling", default="", help="flags of kernel generation, as for accelaes-export build")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    quiet_libraries()
    folder = asked.work / "bundles" / asked.model
    if asked.stage == "build":
        build(asked, folder)
        return
    written = asked.work / f"{asked.model}.{asked.stage}.json"
    if asked.stage == "check":
        bundle = open_bundle(folder, check_hashes=False, allow_code=True)
        Checks(bundle, lambda text: write_whole(written, text)).carry_out()
        return
    policies, against = SETS[asked.stage]
    measured = profile(
        open_bundle(folder, check_hashes=False, allow_code=True),
        ProfileRequest(
            {policy.name: policy for policy in policies},
            asked.steps,
            warmup=1,
            iterations=asked.rounds,
            against=against,
        ),
        TerminalProgress(progress_lines()),
        known=earlier(asked.work, asked.model),
        partial=lambda report: write_whole(written, report.model_dump_json(indent=1)),
    )
    write_whole(written, measured.report.model_dump_json(indent=1))


def build(asked: argparse.Namespace, folder: Path) -> None:
    """The bundle, with random weights. It is checked as a stage of its own: a wrong one is still to be looked at."""
    name, depth = split(asked.model)
    builder.build(
        model=recipe(name, tiny=asked.tiny, depth=depth),
        backend=asked.backend,
        output=folder,
        compiling=asked.compiling or None,
        random_weights=True,
        verify=False,
        progress=TerminalProgress(progress_lines()),
    )


def earlier(work: Path, model: str) -> ProfileReport | None:
    """What an earlier set of this model found of the device, where it got as far as its buckets."""
    for name in SETS:
        path = work / f"{model}.{name}.json"
        if path.is_file():
            report = ProfileReport.model_validate_json(path.read_text(encoding="utf-8"))
            if report.buckets:
                return report
    return None


if __name__ == "__main__":
    main()
