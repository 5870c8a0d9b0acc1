"""DiT in small: squares alone, no text."""

from __future__ import annotations

from tests.families.tiny import Family

FAMILY = Family(
    name="dit",
    config={
        "sample_size": 12,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "num_embeds_ada_norm": 10,
    },
    resolutions=((96, 96),),
    text_tokens=0,
)
