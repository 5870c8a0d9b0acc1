"""Tiny SD3 transformers and pipelines with random weights: real classes, sizes a test can afford."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from accelaes_export.backbones import backbone_of
from accelaes_export.backbones.checkpoints import complete_config, empty_transformer, random_transformer
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.tensors import GraphContract
from accelaes_export.graph.focus_step import FocusStep
from accelaes_export.graph.tensors import graph_contract
from tests.families import FAMILIES

SD3 = backbone_of("sd3")


def tiny_config(**changes: Any) -> dict[str, Any]:
    """Three blocks, 4 heads of 16, 4 latent channels, a 16 x 16 position table."""
    return complete_config(SD3, dict(FAMILIES["sd3"].config) | changes)


def tiny_transformer(config: dict[str, Any] | None = None, seed: int = 0) -> torch.nn.Module:
    return random_transformer(SD3, config or tiny_config(), "fp32", seed)


def tiny_contract(
    config: dict[str, Any],
    *,
    resolution: tuple[int, int] = (128, 96),
    dtype: str = "fp32",
    batch: int = 1,
    fractions: tuple[float, ...] = (0.25, 0.5, 0.75),
    text_tokens: int = 9,
    form: str = "token",
) -> tuple[GraphContract, Latents]:
    """N = 48 tokens on an 8 x 6 grid by default."""
    latents = SD3.latents(config, resolution, 8)
    contract = graph_contract(
        SD3,
        empty_transformer(SD3, config),
        latents,
        form=form,
        dtype=dtype,
        batch=batch,
        fractions=fractions,
        text_tokens=text_tokens,
        dynamic_text=True,
    )
    return contract, latents


def tiny_step(
    config: dict[str, Any], affinity: Sequence[int] = (0, 1), model: torch.nn.Module | None = None, **options: Any
) -> FocusStep:
    """A focus step of `model` (a new one if None); further options are `tiny_contract`'s."""
    contract, latents = tiny_contract(config, **options)
    return FocusStep(tiny_transformer(config) if model is None else model, SD3, contract, latents, affinity)


def save_tiny_checkpoint(folder: Path, config: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """A folder with a transformer/ in diffusers format; returns it."""
    tiny_transformer(config, seed).save_pretrained(folder / "transformer")
    return folder
