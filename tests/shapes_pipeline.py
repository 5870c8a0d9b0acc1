"""The shipped checkpoint as a diffusers pipeline, loaded as diffusers asks for it and not through this package."""

from __future__ import annotations

from typing import Any

import torch

from accelaes_export.recipes import shipped_folder


def load_shapes() -> Any:
    """A StableDiffusion3Pipeline in fp32 on the CPU."""
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(
        shipped_folder("shipped:shapes"),
        text_encoder_3=None,
        tokenizer_3=None,
        image_encoder=None,
        feature_extractor=None,
        dtype=torch.float32,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
