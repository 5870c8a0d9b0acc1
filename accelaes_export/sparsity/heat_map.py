"""A layer-wise schedule as a picture: a row a part, a column a step, the darker the more tokens are computed."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from accelaes_export.policies.layer_schedule import LayerSchedule

_CELL = 18
_NONE, _ALL = (238, 243, 250), (8, 48, 107)
_INK = (40, 40, 40)
_LEGEND = (0.0, 0.25, 0.5, 0.75, 1.0)


def heat_map(schedule: LayerSchedule, title: str) -> Image.Image:
    """The schedule with its parts' names, steps and a legend.

    Args:
        title: a line above it.
    """
    font = ImageFont.load_default(size=12)
    left = 12 + max(int(font.getlength(part)) for part in schedule.parts)
    top, bottom = 44, 40
    width = max(left + _CELL * schedule.steps + 12, left + int(font.getlength(title)) + 12, left + 300)
    picture = Image.new("RGB", (width, top + _CELL * len(schedule.parts) + bottom), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((left, 6), title, _INK, font=font)
    for i in range(schedule.steps):
        if i % 5 == 0:
            draw.text((left + i * _CELL + 3, top - 17), str(i), _INK, font=font)
    for k, part in enumerate(schedule.parts):
        y = top + k * _CELL
        draw.text((left - 6, y + _CELL // 2), part, _INK, font=font, anchor="rm")
        for i, row in enumerate(schedule.keep):
            draw.rectangle(_cell(left + i * _CELL, y), _colour(row[k]))
    y, x = top + _CELL * len(schedule.parts) + 14, left
    for share in _LEGEND:
        draw.rectangle(_cell(x, y), _colour(share))
        draw.text((x + _CELL + 4, y + _CELL // 2), f"{share:.0%}", _INK, font=font, anchor="lm")
        x += 60
    return picture


def _cell(x: int, y: int) -> tuple[int, int, int, int]:
    return x, y, x + _CELL - 2, y + _CELL - 2


def _colour(share: float) -> tuple[int, int, int]:
    red, green, blue = (round(none + share * (full - none)) for none, full in zip(_NONE, _ALL, strict=True))
    return red, green, blue
