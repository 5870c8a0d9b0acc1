"""Pictures inside the page: small enough, as data URIs; the affinity as a heat map."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from accelaes_export.errors import InputError

_HEAT = ((13, 18, 54), (38, 62, 140), (96, 108, 150), (196, 158, 92), (255, 221, 92))
"""From least to most: lightness rises all the way, and no two ends of it are a red and a green."""


def read_image(path: Path, side: int) -> Image.Image:
    """The picture (of a video the first frame), no longer than `side` pixels either way.

    Raises:
        InputError: where there is none, or none that can be read.
    """
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError) as error:
        raise InputError(
            f"The picture {path} can't be read ({error}); run the evaluation again, which makes what is missing."
        ) from error
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def data_uri(picture: Image.Image, *, exact: bool = False) -> str:
    """The picture as PNG or as WebP, whichever is shorter; PNG where every pixel is to stay `exact`."""
    kinds: list[tuple[str, dict[str, Any]]] = [("png", {"optimize": True})]
    if not exact:
        kinds.append(("webp", {"quality": 88, "method": 4}))
    encoded = []
    for kind, options in kinds:
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        encoded.append((len(stream.getbuffer()), kind, stream.getvalue()))
    _, kind, shortest = min(encoded)
    return f"data:image/{kind};base64,{base64.b64encode(shortest).decode()}"


def heat_map(affinity: Sequence[float], grid: tuple[int, int]) -> Image.Image:
    """One pixel a token, from the least affinity (dark blue) to the largest (yellow); all dark where all are equal.

    Args:
        affinity: of the tokens of one picture, row-major; of a video those of the first frame come first and are shown.
        grid: token rows and columns.
    """
    rows, columns = grid
    shown = affinity[: rows * columns]
    low, high = min(shown), max(shown)
    colours = (heat((value - low) / (high - low) if high > low else 0.0) for value in shown)
    return Image.frombytes("RGB", (columns, rows), bytes(part for colour in colours for part in colour))


def heat(value: float) -> tuple[int, int, int]:
    """The colour of a value between 0 and 1."""
    place = min(max(value, 0.0), 1.0) * (len(_HEAT) - 1)
    below = min(int(place), len(_HEAT) - 2)
    part = place - below
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(_HEAT[below], _HEAT[below + 1], strict=True))
    return red, green, blue


HEAT_GRADIENT = ",".join(f"rgb{colour}" for colour in _HEAT)
"""The scale as CSS wants it, from left to right."""
