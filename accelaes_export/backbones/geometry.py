"""Which picture sizes a model can make, said in one sentence where it can't."""

from __future__ import annotations

from accelaes_export.errors import InputError


def check_sides(resolution: tuple[int, int], patch: int, vae_scale: int, table: int | None = None) -> None:
    """InputError unless both sides are positive multiples of patch x VAE scale, within the position table.

    Args:
        resolution: (height, width) in pixels.
        table: positions a side may have, or None without a limit.
    """
    multiple = patch * vae_scale
    for side, pixels in zip(("height", "width"), resolution, strict=True):
        nearest = max(1, round(pixels / multiple)) * multiple
        if pixels <= 0 or pixels % multiple:
            raise InputError(
                f"The {side} {pixels} doesn't fit: it must be a positive multiple of {multiple} "
                f"(patch {patch} x VAE scale {vae_scale}); the nearest is {nearest}."
            )
        if table is not None and pixels // multiple > table:
            raise InputError(
                f"The {side} {pixels} needs {pixels // multiple} positions, but this model's position table has "
                f"{table}; the largest {side} is {table * multiple}."
            )


def no_frames(family: str, frames: int | None) -> None:
    """InputError where frames are asked of a model of pictures."""
    if frames is not None:
        raise InputError(f"{frames} frames were asked for, but {family} makes pictures; leave the frames out.")


def check_frames(family: str, frames: int | None, patch_frames: int, table: int) -> int:
    """The latent frames of a video; InputError unless they are patches of `patch_frames` within the position table."""
    if frames is None:
        raise InputError(
            f"The family {family} makes videos, and no frames were given; say how many latent frames with --frames."
        )
    if frames < 1 or frames % patch_frames or frames // patch_frames > table:
        raise InputError(
            f"{frames} latent frames don't fit: allowed are multiples of {patch_frames} up to {table * patch_frames}."
        )
    return frames
