"""Tiny SD3 transformers and pipelines with random weights: real classes, sizes a test can afford."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from accelaes_export.backbones import backbone
from accelaes_export.backbones.checkpoints import complete_config, random_transformer
from accelaes_export.contract import GraphContract
from accelaes_export.graph.tensors import graph_contract
from accelaes_export.manifest import Latents

SD3 = backbone("sd3")


def tiny_config(**changes: Any) -> dict[str, Any]:
    """Three blocks, 4 heads of 16, 4 latent channels, a 16 x 16 position table."""
    config = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 64,
        "pooled_projection_dim": 24,
        "pos_embed_max_size": 16,
        "qk_norm": None,
        "dual_attention_layers": [],
    }
    return complete_config(SD3, config | changes)


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
) -> tuple[GraphContract, Latents]:
    """N = 48 tokens on an 8 x 6 grid by default."""
    latents = SD3.latents(config, resolution, 8)
    contract = graph_contract(
        SD3,
        config,
        latents,
        dtype=dtype,
        batch=batch,
        fractions=fractions,
        text_tokens=text_tokens,
        dynamic_text=True,
    )
    return contract, latents


def save_tiny_checkpoint(folder: Path, config: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """A folder with a transformer/ in diffusers format; returns it."""
    tiny_transformer(config, seed).save_pretrained(folder / "transformer")
    return folder
