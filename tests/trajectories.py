"""Latents of whole runs: taken from a pipeline, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def sampled(pipe: Any, prompt: str | list[str], *, seed: int = 0, **options: Any) -> list[torch.Tensor]:
    """The latents after every step of a call with these options; every prompt has noise of its own."""
    trajectory: list[torch.Tensor] = []

    def keep(_: Any, i: int, t: Any, state: dict[str, Any]) -> dict[str, Any]:
        trajectory.append(state["latents"].clone())
        return state

    count = len(prompt) if isinstance(prompt, list) else 1
    generators = [torch.Generator().manual_seed(seed + k) for k in range(count)]
    defaults = {"generator": generators, "callback_on_step_end": keep, "output_type": "latent"}
    pipe(prompt=prompt, **defaults | options)
    return trajectory


def difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest of any step, relative to the largest value expected at that step."""
    assert len(found) == len(expected) > 0
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(found, expected, strict=True))


def follows(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Whether all steps' latents are the same to 1e-4 of their range."""
    return difference(found, expected) <= 1e-4
