"""The end of `make demo`: one prompt dense and accelerated, three pictures, the plan and a small table.

python examples/demo.py engines/built/shapes --prompt "an intricate red star on the left, plain blue background"
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

import accelaes_export as ax
from accelaes_export.cli.terminal import quiet_libraries
from accelaes_export.cli.timeline import timeline
from accelaes_export.measure.quality.distances import psnr
from accelaes_export.runtime.generate import generate, load_pipeline
from accelaes_export.runtime.images import mask_overlay

ENLARGE = 8  # the pictures are 48 x 48 pixels
ROUNDS = 7  # of which the first warms up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--output", type=Path, default=Path("out"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    quiet_libraries()
    bundle = ax.open(options.bundle)
    pipe = load_pipeline(bundle)
    policies: dict[str, ax.policies.Policy] = {
        "dense": ax.policies.Dense(),
        "stepcache": ax.policies.StepCache(),
        "accelaes": ax.policies.AccelAes(),
    }
    # Rounds are interleaved, so that a change of the machine's speed meets every policy alike.
    rounds = [
        {
            name: generate(bundle, options.prompt, policy=policy, seed=options.seed, pipe=pipe)
            for name, policy in policies.items()
        }
        for _ in range(ROUNDS)
    ][1:]
    last = rounds[-1]

    options.output.mkdir(parents=True, exist_ok=True)
    for name in ("dense", "accelaes"):
        image = last[name].image
        image.resize((image.width * ENLARGE, image.height * ENLARGE), 0).save(options.output / f"{name}.png")
    report = last["accelaes"].report
    assert report.focus_index is not None
    overlay = mask_overlay(last["accelaes"].image, report.focus_index[0], bundle.manifest.geometry.latents.grid)
    overlay.save(options.output / "mask.png")

    console = Console()
    console.print(f"\n{options.prompt}")
    console.print(timeline(report.plan))
    table = Table("policy", "token-steps", "denoise, ms", "dense / this", "PSNR to dense, dB")
    for column in table.columns[1:]:
        column.justify = "right"
    for name in policies:
        times = [1e3 * made[name].report.seconds for made in rounds]
        ratios = [made["dense"].report.seconds / made[name].report.seconds for made in rounds]
        table.add_row(
            name,
            f"{last[name].report.cost:g} of {last[name].report.dense_cost:g}",
            f"{statistics.median(times):.0f} ({min(times):.0f}-{max(times):.0f})",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            "" if name == "dense" else f"{psnr([last['dense'].image], [last[name].image]):.1f}",
        )
    console.print(table)
    console.print(
        f"Medians of {len(rounds)} interleaved rounds, ranges in brackets; words behind the mask: {report.words[0]}"
    )
    console.print(f"Pictures: {', '.join(str(options.output / n) for n in ('dense.png', 'accelaes.png', 'mask.png'))}")


if __name__ == "__main__":
    main()
