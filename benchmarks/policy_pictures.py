"""The pictures of docs/quality.md, from what benchmarks/policies.py found and the folder it worked in.

    python -m benchmarks.policy_pictures --figures benchmarks/results/policies.json

docs/images/policies.png     the first held-out prompts from the first noise, by cases of about cost 12, each picture
                             over its absolute difference to the 160-step one. Pictures not in the folder are made
docs/images/policies-k.svg   step equivalence against cost
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.policies import CHUNK, Work
from benchmarks.policy_cases import CASES, EXACT
from benchmarks.policy_chart import chart
from benchmarks.resampling import psnr
from benchmarks.shapes_quality import heldout

# The first is what the policies approximate, the last what costs as much.
SHOWN = (
    "dense, 28 steps",
    "drift, budget 12",
    "drift, budget 8",
    "accelaes, p = .75",
    "stepcache, 20 steps",
    "teacache, threshold 0.15",
    "taylorseer, every 3rd, order 1",
    "ras, ratio .25, norm",
    "dense, 12 steps",
)
AMPLIFIED = 32  # differences: a thirty-second of the range is shown black
SIDE = 96  # of a picture on the sheet, twice its own
GAP = 10
LINE = 16


def sheet(
    captions: Sequence[str], exact: np.ndarray, made: Mapping[str, np.ndarray], heads: Mapping[str, Sequence[str]]
) -> Image.Image:
    """One row a prompt, one column a case, after the column of `exact`.

    Args:
        exact: [P, 48, 48, 3] in [0, 1], the 160-step pictures.
        made: by case, the same prompts' pictures.
        heads: by case, the lines over its column.
    """
    font = ImageFont.load_default(size=12)
    top = 2 * GAP + LINE * max(len(lines) for lines in heads.values())
    row = LINE + 2 * SIDE + 2 + LINE + 2 * GAP
    size = (GAP + (len(made) + 1) * (SIDE + GAP), top + len(captions) * row)
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    said = f"difference to\nthis picture,\ntimes {AMPLIFIED}, white\nfor none"
    for column, (case, lines) in enumerate({"": ("dense", "160 steps", "the reference"), **heads}.items()):
        x = GAP + column * (SIDE + GAP)
        for k, line in enumerate(lines):
            pen.text((x, GAP + k * LINE), line, "black", font)
        for number, caption in enumerate(captions):
            y = top + number * row
            if not case:
                pen.text((x, y), caption, "black", font)
                page.paste(_enlarged(exact[number]), (x, y + LINE))
                pen.multiline_text((x, y + LINE + SIDE + GAP), said, "#555555", font)
                continue
            picture = made[case][number]
            far = AMPLIFIED * np.abs(picture - exact[number]).mean(axis=-1, keepdims=True)
            page.paste(_enlarged(picture), (x, y + LINE))
            page.paste(_enlarged(np.repeat(1 - far, 3, axis=-1)), (x, y + LINE + SIDE + 2))
            pen.rectangle((x, y + LINE + SIDE + 2, x + SIDE - 1, y + LINE + 2 * SIDE + 1), outline="#bbbbbb")
            decibels = psnr(np.square(picture - exact[number]))
            pen.text((x, y + LINE + 2 * SIDE + 4), f"{decibels:.1f} dB", "black", font)
    return page


def _enlarged(picture: np.ndarray) -> Image.Image:
    bytes_ = np.rint(picture.clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(bytes_).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def heads_of(figures: Mapping[str, Any], cases: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Over each column: policy, its options, and cost and PSNR as the benchmark found them.

    Raises:
        KeyError: for a case that the figures don't have.
    """
    rows = {row["case"]: row for row in figures["cases"]}
    heads = {}
    for case in cases:
        policy, _, options = case.partition(", ")
        cost, quality = rows[case]["token_steps"], rows[case]["psnr_to_exact"]["value"]
        heads[case] = (policy, options, f"cost {cost:.3g}", f"{quality:.1f} dB overall")
    return heads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, required=True, help="what benchmarks.policies wrote")
    parser.add_argument("--work", type=Path, default=Path("out/policies"), help="its folder of finished chunks")
    parser.add_argument("--prompts", type=int, default=5, help=f"rows of the sheet, at most {CHUNK}")
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    parser.add_argument("--chart-only", action="store_true", help="not the sheet, which needs the model")
    options = parser.parse_args()
    figures = json.loads(options.figures.read_text(encoding="utf-8"))
    (options.output / "policies-k.svg").write_text(chart(figures), encoding="utf-8")
    if options.chart_only:
        return
    work, prompts, seed = Work(options.work), heldout(CHUNK), figures["seeds"][0]
    exact = work.pictures(EXACT, prompts, 0, seed)
    made = {case: work.pictures(CASES[case], prompts, 0, seed) for case in SHOWN}
    captions = [prompt.caption for prompt in prompts[: options.prompts]]
    page = sheet(captions, exact, made, heads_of(figures, SHOWN))
    page.save(options.output / "policies.png", optimize=True)


if __name__ == "__main__":
    main()
