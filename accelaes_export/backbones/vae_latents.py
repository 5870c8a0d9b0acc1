"""From denoised latents, as pipelines have them, to what a VAE's decoder takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from accelaes_export.contract.geometry import Latents

if TYPE_CHECKING:
    import torch


def unpacked(latents: torch.Tensor, geometry: Latents) -> torch.Tensor:
    """Packed tokens [b, N, p·p·C], whose numbers are channel, row and column within the patch, to [b, C, Hl, Wl], or
    [b, C, Fl, Hl, Wl] of videos."""
    (rows, columns), frames, p, C = geometry.grid, geometry.frames or 1, geometry.patch, geometry.channels
    grid = latents.reshape(latents.shape[0], frames, rows, columns, C, p, p).permute(0, 4, 1, 2, 5, 3, 6)
    video = grid.reshape(latents.shape[0], C, frames, geometry.height, geometry.width)
    return video[:, :, 0] if geometry.frames is None else video


def denormalised(latents: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """[b, C, Fl, Hl, Wl] with a VAE's own mean and deviation of every channel."""
    import torch

    m, s = (torch.as_tensor(each, dtype=latents.dtype).view(1, -1, 1, 1, 1) for each in (mean, std))
    return latents * s + m
