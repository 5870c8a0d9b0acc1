"""LTX-Video in small. Where six doesn't divide the model's width, positions leave some numbers as they are."""

from __future__ import annotations

from tests.families.tiny import Family

FAMILY = Family(
    name="ltx",
    config={
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 3,
        "attention_head_dim": 16,
        "cross_attention_dim": 48,
        "num_layers": 2,
        "caption_channels": 24,
    },
    resolutions=((128, 96), (96, 96), (64, 160)),
    vae_scale=32,
    frames=3,
    variants={
        "plain": {},
        "a width that six doesn't divide": {"num_attention_heads": 4, "cross_attention_dim": 64},
    },
)
