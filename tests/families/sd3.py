"""Stable Diffusion 3 in small."""

from __future__ import annotations

from tests.families.tiny import Family

FAMILY = Family(
    name="sd3",
    config={
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 64,
        "pooled_projection_dim": 24,
        "pos_embed_max_size": 16,
        "qk_norm": None,
        "dual_attention_layers": [],
    },
    resolutions=((128, 96), (128, 128), (48, 144)),
    variants={
        "qk_norm none": {},
        "qk_norm rms_norm": {"qk_norm": "rms_norm"},
        "dual attention, as in SD3.5": {"qk_norm": "rms_norm", "dual_attention_layers": [0]},
    },
)
