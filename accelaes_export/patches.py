"""Between latents [B, C, Hl, Wl] and tokens [B, N, p·p·C], in the order diffusers' output layer uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelaes_export.manifest import Latents

if TYPE_CHECKING:
    import torch


def unpatchify(tokens: torch.Tensor, latents: Latents) -> torch.Tensor:
    """[B, N, p·p·C] predictions to [B, C, Hl, Wl]."""
    rows, columns = latents.grid
    p, C = latents.patch, latents.out_channels
    grid = tokens.reshape(tokens.shape[0], rows, columns, p, p, C)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(tokens.shape[0], C, latents.height, latents.width)


def patchify(image: torch.Tensor, latents: Latents) -> torch.Tensor:
    """[B, C, Hl, Wl] to [B, N, p·p·C]: the inverse of `unpatchify`."""
    rows, columns = latents.grid
    p, C = latents.patch, latents.out_channels
    grid = image.reshape(image.shape[0], C, rows, p, columns, p)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(image.shape[0], rows * columns, p * p * C)
