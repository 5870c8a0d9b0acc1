"""Lumina-Next in small."""

from __future__ import annotations

from tests.families.tiny import Family

FAMILY = Family(
    name="lumina",
    config={
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 64,
        "num_layers": 3,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "multiple_of": 16,
        "cross_attention_dim": 32,
    },
    resolutions=((128, 96), (128, 128), (48, 144)),
    variants={
        # diffusers can't make the norm of keys without a number of key heads
        "a key head for every query head, no norms": {"num_kv_heads": None, "qk_norm": False},
        "no learned variance": {"learn_sigma": False},
        "two query heads share a key head": {},
    },
)
