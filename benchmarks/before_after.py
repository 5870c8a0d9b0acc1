"""Whether a change made runs slower: two checkouts take turns, run by run, on the shipped checkpoint.

    git worktree add ../before COMMIT
    python -m benchmarks.before_after ../before engines/built/before . engines/built/shapes --rounds 40

Each bundle was built by its own checkout. Every policy is run by both in each round, moments apart, first by the one
and next time by the other; what is printed is the median of the rounds' ratios, with the 10th to 90th percentile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

POLICIES = {"dense": 28, "stepcache": 28, "accelaes": 28, "drift": 14}
_RUN = """
import logging, sys, time
logging.disable(logging.CRITICAL)
import torch
import accelaes_export as ax
from accelaes_export.policies import named
from tests.shapes_pipeline import load_shapes

pipe, bundle = load_shapes(), ax.open(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
print("ready", flush=True)
for line in sys.stdin:
    name, steps, seed = line.split()
    ax.accelerate(pipe, bundle, named(name, **({"budget": 12} if name == "drift" else {})))
    begun = time.perf_counter()
    pipe(
        "an intricate red star on the left, plain blue background", num_inference_steps=int(steps), guidance_scale=4.5,
        max_sequence_length=8, generator=torch.Generator().manual_seed(int(seed)), output_type="latent",
    )
    print(time.perf_counter() - begun, flush=True)
"""


class Side:
    """One checkout in a process of its own."""

    def __init__(self, checkout: Path, bundle: Path) -> None:
        root = str(checkout.resolve())
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUN, str(bundle.resolve())],
            cwd=root,
            env={**os.environ, "PYTHONPATH": root},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._answer() != "ready":
            raise SystemExit(f"{checkout} could not be started with {bundle}; see above.")

    def seconds(self, policy: str, seed: int) -> float:
        """Of one run."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{policy} {POLICIES[policy]} {seed}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for side in ("before", "after"):
        parser.add_argument(f"{side}", type=Path, help="a checkout")
        parser.add_argument(f"{side}_bundle", type=Path, help="and the bundle it built")
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    before, after = Side(given.before, given.before_bundle), Side(given.after, given.after_bundle)
    seconds: dict[str, list[tuple[float, float]]] = {policy: [] for policy in POLICIES}
    for k in range(2 + given.rounds):
        for policy, found in seconds.items():
            order = (before, after) if k % 2 else (after, before)
            first, second = (side.seconds(policy, k) for side in order)
            if k >= 2:  # the first two warm up
                found.append((first, second) if k % 2 else (second, first))
    for policy, found in seconds.items():
        ratios = sorted(new / old for old, new in found)
        tenth = len(ratios) // 10
        print(
            f"{policy:10s} before {1e3 * statistics.median(old for old, _ in found):6.1f} ms  "
            f"after {1e3 * statistics.median(new for _, new in found):6.1f} ms  "
            f"after/before {statistics.median(ratios):.3f} ({ratios[tenth]:.3f} to {ratios[-1 - tenth]:.3f})"
        )


if __name__ == "__main__":
    main()
