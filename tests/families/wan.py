"""Wan 2.1 in small."""

from __future__ import annotations

from tests.families.tiny import Family

FAMILY = Family(
    name="wan",
    config={
        "patch_size": [1, 2, 2],
        "num_attention_heads": 3,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 24,
        "freq_dim": 32,
        "ffn_dim": 80,
        "num_layers": 2,
        "cross_attn_norm": True,
        "rope_max_seq_len": 32,
    },
    resolutions=((64, 48), (64, 64), (32, 96)),
    frames=3,
    variants={
        "cross-attention normed": {},
        "cross-attention not normed": {"cross_attn_norm": False},
        "a single frame": {},
        "patches of two frames": {"patch_size": [2, 2, 2]},
    },
    variant_frames={"a single frame": 1, "patches of two frames": 4},
)
