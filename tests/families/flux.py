"""FLUX.1 in small: two double blocks and two single ones."""

from __future__ import annotations

from tests.families.tiny import Family

FAMILY = Family(
    name="flux",
    config={
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 24,
        "axes_dims_rope": [4, 6, 6],
        "guidance_embeds": False,
    },
    resolutions=((128, 96), (128, 128), (48, 144)),
    variants={
        "schnell, without guidance": {"guidance_embeds": False},
        "dev, guidance embedded": {"guidance_embeds": True},
    },
    text_first=True,
)
