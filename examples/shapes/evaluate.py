"""Measure a checkpoint: sample held-out prompts with the plain diffusers pipeline, let the judge read the pictures.

    python -m examples.shapes.evaluate --model engines/checkpoints/shapes --sheet contact-sheet.png

An object counts as right in a word when the judge finds that word at the object's position; a picture counts as
right when it shows every object with the right shape and colour, and no other object.
"""

from __future__ import annotations

import argparse
import json
import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image, ImageDraw, ImageFont

from examples.shapes import judge
from examples.shapes.captions import heldout_prompts, parse
from examples.shapes.judge import Reading
from examples.shapes.scenes import Scene

log = logging.getLogger(__name__)

STEPS, GUIDANCE = 28, 4.5
CELL, TEXT_LINES, COLUMNS = 144, 4, 8  # pixels a picture, lines of caption under it, pictures a row


def load_pipeline(folder: str | Path) -> StableDiffusion3Pipeline:
    """The checkpoint, computing in float32."""
    # diffusers wants to hear that there is no T5, although model_index.json says so.
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: StableDiffusion3Pipeline,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    max_sequence_length: int = 256,
    batch: int = 16,
) -> torch.Tensor:
    """Pictures [B, 3, 48, 48] in [-1, 1], dense sampling; every prompt starts from noise of its own seed."""
    pictures = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [torch.Generator().manual_seed(seed + start + number) for number in range(len(part))]
        output = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=48,
            width=48,
            generator=generators,
            max_sequence_length=max_sequence_length,
            output_type="pt",
        )
        pictures.append(output.images.float() * 2 - 1)
    return torch.cat(pictures)


def picture_is_right(scene: Scene, reading: Reading) -> bool:
    """Every object of the scene stands in its position with its shape and colour, and there is no other."""
    wanted = {item.position: (item.shape, item.colour) for item in scene.items}
    return wanted == {position: (found["shape"], found["colour"]) for position, found in reading.items.items()}


def accuracy(scenes: Sequence[Scene], readings: Sequence[Reading]) -> dict[str, float]:
    """Fractions of objects right in shape, colour, size and aesthetic word; of pictures right; of backgrounds right."""
    objects = [
        (item, reading.items.get(item.position, {}))
        for s, reading in zip(scenes, readings, strict=True)
        for item in s.items
    ]
    figures = {
        field: sum(found.get(field) == getattr(item, field) for item, found in objects) / len(objects)
        for field in ("shape", "colour", "size", "aesthetic")
    }
    described = [(item, found) for item, found in objects if item.aesthetic]
    if described:
        right = sum(found.get("aesthetic") == item.aesthetic for item, found in described)
        figures["aesthetic_where_asked"] = right / len(described)
    pairs = list(zip(scenes, readings, strict=True))
    figures["picture"] = sum(picture_is_right(scene, reading) for scene, reading in pairs) / len(pairs)
    grounds = [(scene.background, scene.graded) == (reading.background, reading.graded) for scene, reading in pairs]
    return figures | {"background": sum(grounds) / len(pairs)}


def contact_sheet(pictures: torch.Tensor, prompts: Sequence[str], wrong: Sequence[bool] | None = None) -> Image.Image:
    """All pictures with their prompts underneath; the prompts of wrong ones in red."""
    line = 11
    rows = -(-len(prompts) // COLUMNS)
    gap = 8
    height = CELL + TEXT_LINES * line + gap
    sheet = Image.new("RGB", (COLUMNS * (CELL + gap) + gap, rows * height + gap), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=9)
    pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for number, prompt in enumerate(prompts):
        left, top = gap + number % COLUMNS * (CELL + gap), gap + number // COLUMNS * height
        image = Image.fromarray(np.ascontiguousarray(pixels[number]))
        sheet.paste(image.resize((CELL, CELL), Image.Resampling.NEAREST), (left, top))
        text = "\n".join(textwrap.wrap(prompt, 32)[:TEXT_LINES])
        pen.multiline_text(
            (left, top + CELL + 1),
            text,
            fill="red" if wrong and wrong[number] else "black",
            font=font,
            spacing=1,
        )
    return sheet


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="engines/checkpoints/shapes")
    parser.add_argument("--count", type=int, default=128, help="held-out prompts")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--max-sequence-length", type=int, default=256)
    parser.add_argument("--shift", type=float, help="another scheduler shift than the checkpoint's")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG)")
    parser.add_argument("--sheet-count", type=int, default=48)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pipeline = load_pipeline(options.model)
    if options.shift is not None:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, shift=options.shift)
    prompts = heldout_prompts(options.count)
    scenes = [parse(prompt) for prompt in prompts]
    pictures = sample(pipeline, prompts, options.seed, options.steps, options.guidance, options.max_sequence_length)
    readings = judge.read(judge.load(), pictures)
    figures = accuracy(scenes, readings)
    log.info("%s", json.dumps({name: round(value, 4) for name, value in figures.items()}))
    wrong = [not picture_is_right(scene, reading) for scene, reading in zip(scenes, readings, strict=True)]
    for prompt, reading, is_wrong in zip(prompts, readings, wrong, strict=True):
        if is_wrong:
            seen = "; ".join(f"{found['colour']} {found['shape']} {place}" for place, found in reading.items.items())
            log.info("wrong: %s | seen: %s", prompt, seen)
    if options.sheet:
        shown = options.sheet_count
        contact_sheet(pictures[:shown], prompts[:shown], wrong[:shown]).save(options.sheet, optimize=True)


if __name__ == "__main__":
    main()
