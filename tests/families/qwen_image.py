"""Qwen-Image in small."""

from __future__ import annotations

from tests.families.tiny import Family

FAMILY = Family(
    name="qwen-image",
    config={
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "axes_dims_rope": [4, 6, 6],
    },
    resolutions=((128, 96), (128, 128), (48, 144)),  # 3 rows: the middle of an odd grid
    text_first=True,
)
