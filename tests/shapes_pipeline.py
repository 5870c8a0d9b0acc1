"""The shipped checkpoint as a diffusers pipeline, loaded as diffusers asks for it and not through this package."""

from __future__ import annotations

from typing import Any

from accelaes_export.recipes import shipped_folder
from examples.shapes.evaluate import load_pipeline


def load_shapes() -> Any:
    """A StableDiffusion3Pipeline in fp32 on the CPU."""
    return load_pipeline(shipped_folder("shipped:shapes"))
