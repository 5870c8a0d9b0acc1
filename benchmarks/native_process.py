"""A picture of a prompt as a whole process, natively and in Python, by turns: time, CPU time and memory.

python -m benchmarks.native_process build/native/accelaes_draw BUNDLE --rounds 5
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from benchmarks.processes import Took, measured

PROMPT = "an intricate red star on the left, plain blue background"


def main() -> None:
    """Print a table of medians, and the largest difference of the two pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("draw", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--policy", default="accelaes")
    given = parser.parse_args()
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))
    with tempfile.TemporaryDirectory() as folder:
        pictures = [f"{folder}/native.png", f"{folder}/python.png"]
        more = ["--preset", given.policy, "--seed", "3", "--library", str(library), "--threads", "2"]
        asked = ["run", str(given.bundle), "--prompt", PROMPT, "--policy", given.policy, "--seed", "3"]
        commands = {
            "native": [str(given.draw), str(given.bundle), PROMPT, *more, "--output", pictures[0]],
            "Python": [str(Path(sys.executable).with_name("accelaes-export")), *asked, "-o", pictures[1]],
        }
        found: dict[str, list[Took]] = {name: [] for name in commands}
        for _ in range(given.rounds):
            for name, command in commands.items():
                found[name].append(measured(command, name, silent=True))
        apart = np.subtract(*(np.asarray(Image.open(path)).astype(int) for path in pictures))
    print("| | s | CPU s | peak MB |\n|---|---|---|---|")
    for name, rows in found.items():
        figures = zip(*((row.seconds, row.cpu_seconds, row.peak / 1e6) for row in rows), strict=True)
        columns = [f"{statistics.median(of):.2f} ({min(of):.2f}-{max(of):.2f})" for of in figures]
        print(f"| {name} | {' | '.join(columns)} |")
    print(f"Levels apart: {np.abs(apart).max()} of 255")


if __name__ == "__main__":
    main()
