"""What the held-out prompts of the shipped checkpoint's world say about a picture, and about a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from accelaes_export.contract.manifest import Manifest
from accelaes_export.policies import AccelAes
from accelaes_export.policies.estimates import Estimates
from accelaes_export.policies.selection import OneShotMask, top_tokens
from examples.shapes import judge
from examples.shapes.captions import heldout_prompts, parse
from examples.shapes.drawing import aesthetic_mask, token_mask
from examples.shapes.scenes import Scene


class _RandomMask(OneShotMask):
    def score(self, estimates: Estimates, affinity: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
        assert affinity is not None
        return torch.rand(affinity.shape, generator=torch.Generator().manual_seed(self.mask_step))


@dataclass(frozen=True)
class RandomFocus(AccelAes):
    """AccelAes with focus tokens drawn at random: what the mask is worth is what lies between the two."""

    def selector(self) -> OneShotMask:
        return _RandomMask(self.mask_step)


@dataclass(frozen=True)
class HeldOut:
    """A prompt no training run has seen, and the scene it describes."""

    caption: str
    scene: Scene


def heldout(count: int) -> list[HeldOut]:
    """The first `count` held-out prompts, always the same."""
    return [HeldOut(caption, parse(caption)) for caption in heldout_prompts(count)]


def attribute_accuracy(pictures: np.ndarray, prompts: Sequence[HeldOut]) -> dict[str, float]:
    """Shares of objects whose shape, colour, both, or these and the texture the classifier reads back right.

    Args:
        pictures: [P, 48, 48, 3] in [0, 1].
    """
    readings = judge.read(judge.load(), torch.from_numpy(pictures).permute(0, 3, 1, 2).float() * 2 - 1)
    found = [
        (item, reading.items.get(item.position, {}))
        for prompt, reading in zip(prompts, readings, strict=True)
        for item in prompt.scene.items
    ]

    def right(item: Any, seen: Any, *fields: str) -> bool:
        return all(seen.get(field) == getattr(item, field) for field in fields)

    figures = {
        "shape": ("shape",),
        "colour": ("colour",),
        "shape_and_colour": ("shape", "colour"),
        "shape_colour_texture": ("shape", "colour", "aesthetic"),
    }
    return {
        name: sum(right(item, seen, *fields) for item, seen in found) / len(found) for name, fields in figures.items()
    } | {"objects": len(found), "pictures_all_right": _all_right(prompts, readings)}


def _all_right(prompts: Sequence[HeldOut], readings: Sequence[Any]) -> float:
    """Share of prompts whose every object has the right shape and colour."""
    return sum(
        all(
            reading.items.get(item.position, {}).get(field) == getattr(item, field)
            for item in prompt.scene.items
            for field in ("shape", "colour")
        )
        for prompt, reading in zip(prompts, readings, strict=True)
    ) / len(prompts)


def psnr(pictures: np.ndarray, reference: np.ndarray) -> dict[str, float] | None:
    """Peak signal-to-noise ratio in dB over prompts, of pictures in [0, 1]; None for the reference itself."""
    error = np.square(pictures - reference).mean(axis=(1, 2, 3))
    if not error.any():
        return None
    low, middle, high = np.percentile(-10 * np.log10(np.maximum(error, 1e-12)), [10, 50, 90])
    # The mean is that of the error, so that one bad picture counts as what it is.
    return {"of_mean_error": float(-10 * np.log10(error.mean())), "median": middle, "p10": low, "p90": high}


def mask_figures(affinity: torch.Tensor, prompts: Sequence[HeldOut], manifest: Manifest) -> dict[str, float]:
    """How well affinity [P, N] finds the described object's tokens.

    hit_rate: share of the object's tokens among the focus tokens, for the bucket 0.5; chance: the same for a random
    mask; auc: probability that an object token's affinity is above another token's. Averages over the prompts that
    describe an object with an aesthetic word.
    """
    n = manifest.geometry.contract.buckets[manifest.bucket_fractions.index(0.5)]
    hits, areas = [], []
    for row, prompt in zip(affinity, prompts, strict=True):
        if prompt.scene.aesthetic_item is None:
            continue
        inside = token_mask(aesthetic_mask(prompt.scene)).flatten()
        focus = torch.zeros_like(inside)
        focus[top_tokens(row[None], n)[0]] = True
        hits.append((focus & inside).sum().item() / inside.sum().item())
        above = (row[inside][:, None] > row[~inside][None, :]).float().mean()
        equal = (row[inside][:, None] == row[~inside][None, :]).float().mean()
        areas.append((above + equal / 2).item())
    return {
        "prompts": len(hits),
        "focus_share": n / manifest.geometry.contract.tokens,
        "hit_rate": float(np.mean(hits)),
        "chance": n / manifest.geometry.contract.tokens,
        "auc": float(np.mean(areas)),
    }
