"""Pictures of what a run did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelaes_export.files.writing import whole_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from PIL.Image import Image

    from accelaes_export.contract.geometry import Latents

_TINT = (255, 72, 0)  # told apart from most pictures; focus keeps its colours, the background is dimmed
_FRAMES_PER_SECOND = 16  # of the video models supported
_SMALLEST_SIDE = 384  # pixels; smaller pictures are enlarged so that tokens can be seen


def mask_overlay(image: Image, focus_index: torch.Tensor, grid: tuple[int, int]) -> Image:
    """The picture with its background tokens dimmed and every focus token outlined.

    Args:
        focus_index: [n] int64, one image's focus tokens.
        grid: token rows and columns.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    rows, columns = grid
    enlarge = max(1, -(-_SMALLEST_SIDE // min(image.size)))
    picture = image.convert("RGB").resize((image.width * enlarge, image.height * enlarge), Pillow.Resampling.NEAREST)
    width, height = picture.width / columns, picture.height / rows
    focus = set(focus_index.tolist())
    shade = Pillow.new("L", picture.size, 150)
    draw_shade = ImageDraw.Draw(shade)
    boxes = {
        index: (
            round(index % columns * width),
            round(index // columns * height),
            round((index % columns + 1) * width) - 1,
            round((index // columns + 1) * height) - 1,
        )
        for index in range(rows * columns)
    }
    for index in focus:
        draw_shade.rectangle(boxes[index], fill=0)
    picture = Pillow.composite(Pillow.new("RGB", picture.size, (24, 24, 28)), picture, shade)
    draw = ImageDraw.Draw(picture)
    for index in focus:
        left, top, right, bottom = boxes[index]
        # Only the region's outer edge is drawn: inner token borders would hide the picture.
        neighbours = {
            ((left, top), (right, top)): index - columns,
            ((left, bottom), (right, bottom)): index + columns,
            ((left, top), (left, bottom)): index - 1 if index % columns else -1,
            ((right, top), (right, bottom)): index + 1 if (index + 1) % columns else -1,
        }
        for edge, neighbour in neighbours.items():
            if neighbour not in focus:
                draw.line(edge, fill=_TINT, width=2)
    return picture


def mask_overlays(frames: Sequence[Image], focus_index: torch.Tensor, latents: Latents) -> list[Image]:
    """`mask_overlay` of every frame of a video, each with the focus tokens it was decoded from.

    Args:
        focus_index: [n] int64, counted frame by frame.
    """
    rows, columns = latents.grid
    frame, cell = focus_index // (rows * columns), focus_index % (rows * columns)
    # The first latent frame is one video frame; every other is `frame_scale` of them.
    of_video = [-(-k // latents.frame_scale) // latents.patch_frames for k in range(len(frames))]
    return [
        mask_overlay(picture, cell[frame == own], latents.grid) for picture, own in zip(frames, of_video, strict=True)
    ]


def save_images(frames: Sequence[Image], path: Path) -> None:
    """A picture, or a video's frames as an animated one that repeats, 16 a second; in the format `path` ends with.

    Raises:
        InputError, WriteError: as `user_files.whole_file`.
    """
    from PIL import Image as Pillow

    Pillow.init()
    moving: dict[str, Any] = {}
    if len(frames) > 1:
        milliseconds = round(1000 / _FRAMES_PER_SECOND)
        moving = {"save_all": True, "append_images": list(frames[1:]), "duration": milliseconds, "loop": 0}
    with whole_file(path) as file:
        frames[0].save(file, Pillow.registered_extensions()[path.suffix.lower()], **moving)
