"""Classifier-free guidance on token predictions: the pipeline's own scale, or one scale per region (Eq. 11)."""

from __future__ import annotations

import torch

from accelaes_export.errors import InputError
from accelaes_export.policies.base import SpatialGuidance


def guided(uncond: torch.Tensor, cond: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """uncond + scale (cond - uncond), in the predictions' dtype, bit for bit what diffusers' pipelines compute."""
    return uncond + scale * (cond - uncond)


def at_length_of(cond: torch.Tensor, guided: torch.Tensor) -> torch.Tensor:
    """`guided` [b, N, d], every token scaled to the length of `cond`'s, as Qwen-Image's pipelines do.

    A token that is all zeros stays so.
    """
    wanted, found = (torch.linalg.vector_norm(each, dim=-1, keepdim=True) for each in (cond, guided))
    return guided * torch.where(found > 0, wanted / found, 1.0)


def spatial(uncond: torch.Tensor, cond: torch.Tensor, mask: torch.Tensor, guidance: SpatialGuidance) -> torch.Tensor:
    """Eq. 11: every token guided by its own scale g = background + (focus - background) M.

    Args:
        uncond, cond: the two halves' predictions, [b, N, d].
        mask: M [b, N], 0 to 1; pass `softened_mask` of it for a soft edge.
        guidance: the two scales.

    Returns:
        [b, N, d] in the predictions' dtype, computed in fp32. Equal scales give `guided` exactly.
    """
    if guidance.focus == guidance.background:
        return guided(uncond, cond, guidance.focus)
    scale = guidance.background + (guidance.focus - guidance.background) * mask.to(torch.float32)  # [b, N]
    uncond_fp32 = uncond.to(torch.float32)
    return (uncond_fp32 + scale.unsqueeze(-1) * (cond.to(torch.float32) - uncond_fp32)).to(uncond.dtype)


def with_free_channels(guided: torch.Tensor, cond: torch.Tensor, channels: int | None, of: int) -> torch.Tensor:
    """`guided` [b, N, d], of whose `of` channels a cell those behind the first `channels` are `cond`'s: never guided.

    None: all are guided.
    """
    if channels is None or channels >= of:
        return guided
    free = torch.arange(guided.shape[-1], device=guided.device) % of >= channels
    return torch.where(free, cond, guided)


def softened_mask(mask: torch.Tensor, grid: tuple[int, int], width: float) -> torch.Tensor:
    """`mask` [b, N] blurred by a Gaussian of standard deviation `width` tokens over the token grid, row-major.

    At the picture's edge the Gaussian is normalised over the tokens that exist, so a mask of ones stays ones.
    A width under a twentieth of a token, 0 included, returns the mask as it is: no neighbour would weigh anything.

    Raises:
        InputError: if the grid doesn't hold the mask's N tokens.
    """
    rows, columns = grid
    if rows * columns != mask.shape[1]:
        raise InputError(
            f"The mask has {mask.shape[1]} tokens, but a grid of {rows} x {columns} holds {rows * columns}: "
            "give the token rows and columns of this picture."
        )
    if width < 0.05:
        return mask
    picture = mask.to(torch.float32).reshape(-1, rows, columns)  # [b, rows, columns]
    down, across = _gaussian(rows, width, mask.device), _gaussian(columns, width, mask.device)
    return (down @ picture @ across.T).reshape(-1, rows * columns)


def _gaussian(length: int, width: float, device: torch.device) -> torch.Tensor:
    """[length, length]: row i holds the normalised weights of all positions around i."""
    position = torch.arange(length, device=device, dtype=torch.float32)
    weight = torch.exp(-((position[:, None] - position[None, :]) ** 2) / (2 * width**2))
    return weight / weight.sum(dim=1, keepdim=True)
