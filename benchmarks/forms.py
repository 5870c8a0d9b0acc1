"""Token form against component form on the shipped checkpoint: accuracy, distance to dense and time at counted cost.

    python -m benchmarks.forms --output benchmarks/results/forms.json

Both forms run the same plans. Cost is counted: FLOPs of all engine calls, in dense steps.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import accelaes_export as ax
from accelaes_export.bundle.reading import Bundle
from accelaes_export.policies import AccelAes, Dense, StepCache
from accelaes_export.policies.base import Policy
from benchmarks.shapes_quality import RandomFocus
from benchmarks.shapes_runs import BATCH, Case, denoise_times, machine, quality, show, write_figures

SPARSE: dict[str, Policy] = {
    "p = .5, refresh 2, no skipping": AccelAes(interval=1),
    "p = .5, refresh 2": AccelAes(),
    "p = .5, refresh 2, random mask": RandomFocus(),
    "p = .75, refresh 2": AccelAes(skip_ratio=0.75),
    "p = .5, refresh 3": AccelAes(refresh_every=3),
    "p = .5, never refreshed": AccelAes(refresh_every=0),
}


def cases(token: Bundle, component: Bundle) -> dict[str, Case]:
    """Dense steps, StepCache, and every sparse policy in both forms."""
    found = {"dense, 28 steps": Case(token, Dense())}
    found |= {f"dense, {steps} steps": Case(token, Dense(), steps) for steps in (20, 17, 14, 12)}
    found["stepcache"] = Case(token, StepCache())
    for label, policy in SPARSE.items():
        found[f"token, {label}"] = Case(token, policy)
        found[f"component, {label}"] = Case(component, policy)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=128)
    options = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:

        def both(batch: int) -> dict[str, Case]:
            return cases(
                *(
                    ax.build(model="shapes", form=form, batch=batch, output=Path(folder) / f"{form}-{batch}")
                    for form in ("token", "component")
                )
            )

        figures["denoise"] = denoise_times(both(1), options.rounds)
        show("Whole denoise", figures["denoise"])
        figures["quality"] = quality(both(BATCH), options.prompts)
        show("Quality on held-out prompts", figures["quality"])
    if options.output:
        write_figures(options.output, figures)


if __name__ == "__main__":
    main()
