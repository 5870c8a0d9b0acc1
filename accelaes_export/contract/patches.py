"""Between what a pipeline works with and tokens [B, N, w]: latents of pictures and videos, or tokens already.

A token's numbers are in the order diffusers' output layers use: frame, row and column within the patch, channel.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from accelaes_export.contract.geometry import Latents

if TYPE_CHECKING:
    import torch

    from accelaes_export.contract.manifest import Guidance
    from accelaes_export.policies.programs import Picture


def unpatchify(tokens: torch.Tensor, latents: Latents) -> torch.Tensor:
    """[B, N, w] predictions to what the transformer returns.

    [B, C, Hl, Wl] of pictures (behind them zeros for the learned variance, where pipelines expect it),
    [B, C, F, Hl, Wl] of videos, and the tokens themselves where the pipeline takes tokens.
    """
    if latents.packed:
        return tokens
    B, C = tokens.shape[0], latents.out_channels
    grid = tokens.reshape(B, *_grid(latents), latents.patch_frames, latents.patch, latents.patch, C)
    video = grid.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(B, C, latents.frames or 1, latents.height, latents.width)
    if latents.frames is not None:
        return video
    image = video[:, :, 0]
    if latents.sigma_channels:
        import torch

        image = torch.nn.functional.pad(image, (0, 0, 0, 0, 0, latents.sigma_channels))
    return image


def patchify(sample: torch.Tensor, latents: Latents) -> torch.Tensor:
    """What the transformer returned, to [B, N, w]: the inverse of `unpatchify`; a learned variance is left out."""
    if latents.packed:
        return sample
    frames, rows, columns = _grid(latents)
    p, q, C = latents.patch, latents.patch_frames, latents.out_channels
    grid = sample[:, :C].reshape(sample.shape[0], C, frames, q, rows, p, columns, p)
    return grid.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(sample.shape[0], latents.tokens, latents.token_width)


def by_cell(tokens: torch.Tensor, latents: Latents) -> torch.Tensor:
    """[B, N, w] predictions as [B, N, P, C]: the channels of each of a token's latent cells. A view.

    Packed tokens have the cells of a channel side by side, as their pipelines pack latents; others the channels of a
    cell.
    """
    C = latents.token_width // (latents.patch_frames * latents.patch**2)
    if latents.packed:
        return tokens.unflatten(-1, (C, -1)).transpose(-1, -2)
    return tokens.unflatten(-1, (-1, C))


def picture_of(latents: Latents, guidance: Guidance, *, component: bool) -> Picture:
    """What a policy's programs need to know of pictures of this size.

    Args:
        guidance: as the family's pipelines apply it.
        component: the form of the focus step.
    """
    from accelaes_export.policies.programs import Picture

    return Picture(
        latents=latents.shape,
        grid=latents.grid,
        channels=latents.out_channels,
        guided_channels=guidance.channels,
        rescaled=guidance.rescaled,
        cells=partial(by_cell, latents=latents),
        component=component,
    )


def _grid(latents: Latents) -> tuple[int, int, int]:
    return ((latents.frames or 1) // latents.patch_frames, *latents.grid)
