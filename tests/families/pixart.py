"""PixArt in small. Three heads: a third of the width embeds a side of the picture."""

from __future__ import annotations

from tests.families.tiny import Family

FAMILY = Family(
    name="pixart",
    config={
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 3,
        "cross_attention_dim": 48,
        "caption_channels": 32,
    },
    resolutions=((128, 96), (128, 128), (48, 144)),
    variants={
        "Sigma: positions stretched, no sizes": {"interpolation_scale": 2},
        "no learned variance, text of the model's width": {"out_channels": None, "caption_channels": None},
        "Alpha at 1024: sizes embedded": {"sample_size": 128},
    },
)
