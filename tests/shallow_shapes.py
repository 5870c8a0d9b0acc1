"""The shipped checkpoint with its first and last block alone: real words and pictures, built in a third of the time."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from accelaes_export.recipes import shipped_folder

BLOCKS = 2


def save_shallow_shapes(folder: Path) -> Path:
    """A pipeline's folder, which is made; returns it."""
    from diffusers import SD3Transformer2DModel

    shipped = shipped_folder("shipped:shapes")
    shutil.copytree(shipped, folder, ignore=shutil.ignore_patterns("transformer"))
    whole = SD3Transformer2DModel.from_pretrained(shipped / "transformer")
    shallow = SD3Transformer2DModel.from_config({**whole.config, "num_layers": BLOCKS})
    shallow.transformer_blocks = torch.nn.ModuleList([whole.transformer_blocks[0], whole.transformer_blocks[-1]])
    shallow.load_state_dict({name: value for name, value in whole.state_dict().items() if "blocks" not in name}, False)
    shallow.save_pretrained(folder / "transformer")
    return folder
