"""What the shapes world knows of its pictures, as metrics for `accelaes-export evaluate`.

    accelaes-export evaluate engines/built/shapes --prompts prompts.txt --metrics psnr,examples.shapes.metrics:ALL

(run where Python finds this package: in the repository, with PYTHONPATH=. or as `python cli.py evaluate`). A prompt's
scene is read from its words (captions.py), what a picture shows by the judge (judge.py).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from accelaes_export.measure.quality.metrics import Metric, Sample
from accelaes_export.policies.selection import top_tokens
from examples.shapes import judge
from examples.shapes.captions import parse
from examples.shapes.drawing import aesthetic_mask, token_mask
from examples.shapes.judge import Judge, Reading
from examples.shapes.scenes import Scene

FOCUS = 0.5  # n/N of the mask whose hits are counted


@cache
def _judge() -> Judge:
    return judge.load()


def _scene(sample: Sample) -> Scene | None:
    """What the prompt describes; None for a prompt that isn't of this world."""
    try:
        return parse(sample.prompt)
    except ValueError:
        return None


def _reading(sample: Sample) -> Reading:
    picture = torch.from_numpy(np.asarray(sample.frames[0].convert("RGB"), dtype=np.float32) / 127.5 - 1)
    return judge.read(_judge(), picture.permute(2, 0, 1)[None])[0]


def _right(fields: tuple[str, ...], sample: Sample) -> float | None:
    """Share of the prompt's objects whose words of `fields` the judge reads back at their position."""
    scene = _scene(sample)
    if scene is None:
        return None
    items = _reading(sample).items
    right = [
        all(items.get(item.position, {}).get(field) == getattr(item, field) for field in fields) for item in scene.items
    ]
    return sum(right) / len(right)


def _hit_rate(sample: Sample) -> float | None:
    """Share of the aesthetic object's tokens that AesMask's better half holds; None without a mask or an object."""
    scene = _scene(sample)
    if scene is None or scene.aesthetic_item is None or sample.report.affinity is None:
        return None
    inside = token_mask(aesthetic_mask(scene)).flatten()
    affinity = sample.report.affinity[:1].cpu()
    focus = torch.zeros_like(inside)
    focus[top_tokens(affinity, round(FOCUS * affinity.shape[1]))[0]] = True
    return (focus & inside).sum().item() / inside.sum().item()


ACCURACY = Metric(
    "accuracy",
    lambda sample: _right(("shape", "colour", "aesthetic"), sample),
    title="right",
    source="share of a prompt's objects whose shape, colour and texture an independent classifier reads back",
)
SHAPE_AND_COLOUR = Metric(
    "shape-colour",
    lambda sample: _right(("shape", "colour"), sample),
    title="shape, colour",
    source="the same without texture",
)
HIT_RATE = Metric(
    "hit-rate",
    _hit_rate,
    title="mask hits",
    source=f"share of the described object's tokens among the {FOCUS:.0%} of largest affinity; chance is {FOCUS:g}",
)
ALL = [ACCURACY, SHAPE_AND_COLOUR, HIT_RATE]
