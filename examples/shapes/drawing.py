"""Pictures and ground-truth masks of scenes, drawn as signed distance functions, many at a time.

Everything is [B, 48, 48] arithmetic on pixel centres, B pictures at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from examples.shapes.scenes import AESTHETICS, SHAPES, Item, Scene

PIXELS = 48  # picture height and width
TOKEN_PIXELS = 4  # one image token: the autoencoder halves, the transformer patches 2 by 2
# x, y in pixels
CENTRES = {"left": (11, 24), "right": (37, 24), "top": (24, 11), "bottom": (24, 37), "center": (24, 24)}
RADII = {"small": 5.2, "medium": 7.0, "large": 9.0}
PAINT = {
    "red": (0.88, 0.11, 0.13),
    "orange": (0.98, 0.52, 0.06),
    "yellow": (0.97, 0.88, 0.12),
    "green": (0.13, 0.66, 0.20),
    "cyan": (0.12, 0.82, 0.85),
    "blue": (0.10, 0.20, 0.86),
    "purple": (0.52, 0.14, 0.72),
    "pink": (0.98, 0.50, 0.74),
}
GROUND = {
    "white": (0.95, 0.95, 0.95),
    "gray": (0.55, 0.55, 0.55),
    "black": (0.09, 0.09, 0.10),
    "blue": (0.42, 0.58, 0.80),
    "beige": (0.86, 0.77, 0.60),
}


def _circle(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.hypot(u, v) - 0.95


def _square(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.85


def _triangle(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    v = v - 0.3  # the centroid lies low; lift the bounding box onto the slot
    return torch.maximum(v, math.sqrt(0.75) * u.abs() - 0.5 * v) - 0.6


def _star(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    fifth = 2 * math.pi / 5
    angle = torch.atan2(u, -v)  # zero points up
    angle = (torch.remainder(angle + fifth / 2, fifth) - fifth / 2).abs()  # fold onto half a point
    radius = torch.hypot(u, v)
    outer, inner = 1.1, 0.48
    edge_x, edge_y = inner * math.cos(fifth / 2) - outer, inner * math.sin(fifth / 2)
    length = math.hypot(edge_x, edge_y)
    return ((radius * torch.cos(angle) - outer) * edge_y - radius * torch.sin(angle) * edge_x) / length


def _heart(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    half = 0.62  # a square on its corner with a half disc on each upper side
    v = v - 0.1
    body = (u.abs() + v.abs()) / math.sqrt(2) - half
    lobes = torch.hypot(u.abs() - half / math.sqrt(2), v + half / math.sqrt(2)) - half
    return torch.minimum(body, lobes)


def _cross(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    u, v = u.abs(), v.abs()
    return torch.minimum(torch.maximum(u - 0.98, v - 0.36), torch.maximum(v - 0.98, u - 0.36))


DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
}


def _grid() -> tuple[torch.Tensor, torch.Tensor]:
    axis = torch.arange(PIXELS) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y  # [48, 48] each


def _coverage(shape: torch.Tensor, u: torch.Tensor, v: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """How much of each pixel the shapes cover, [B, 48, 48] in [0, 1]; one pixel of antialiasing."""
    coverage = torch.zeros_like(u)
    for index, name in enumerate(SHAPES):
        chosen = shape == index
        if chosen.any():
            distance = DISTANCES[name](u[chosen], v[chosen]) * radius[chosen, None, None]
            coverage[chosen] = (0.5 - distance).clamp(0, 1)
    return coverage


def _texture(
    aesthetic: torch.Tensor, u: torch.Tensor, v: torch.Tensor, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fractions of black and of white [B, 48, 48] that the aesthetic words mix into the paint."""
    black, white = torch.zeros_like(u), torch.zeros_like(u)
    radius = torch.hypot(x, y)  # pixels from the item's centre: textures keep their grain at every size
    chosen = aesthetic == AESTHETICS.index("intricate")  # fine rings
    black[chosen] = 0.62 * (0.5 - 0.5 * torch.cos(radius[chosen] * (2 * math.pi / 4.2))) ** 1.5
    chosen = aesthetic == AESTHETICS.index("detailed")  # a woven check
    check = torch.sin(x[chosen] * (math.pi / 2.4)) * torch.sin(y[chosen] * (math.pi / 2.4))
    black[chosen] = 0.6 * (1.8 * check).clamp(0, 1)
    white[chosen] = 0.5 * (-1.8 * check).clamp(0, 1)
    chosen = aesthetic == AESTHETICS.index("glossy")  # a highlight up left, shade below
    highlight = torch.exp(-((u[chosen] + 0.28) ** 2 + (v[chosen] + 0.28) ** 2) / 0.09)
    white[chosen] = 0.95 * highlight
    black[chosen] = 0.5 * (0.9 * (u[chosen] + v[chosen]) - 0.1).clamp(0, 1) * (1 - highlight)
    chosen = aesthetic == AESTHETICS.index("vibrant")  # bold rays
    rays = torch.cos(6 * torch.atan2(v[chosen], u[chosen]))
    white[chosen] = 0.62 * (0.5 + 2 * rays).clamp(0, 1)
    return black, white


def draw(scenes: Sequence[Scene], generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw scenes.

    Returns pictures [B, 3, 48, 48] in [-1, 1] and the mask [B, 48, 48] (bool) of the item that carries an
    aesthetic word, empty where none does. With a generator, places, sizes and paint vary a little; without, all
    are nominal.
    """
    count = len(scenes)
    x, y = _grid()
    ground = torch.tensor([GROUND[scene.background] for scene in scenes])  # [B, 3]
    graded = torch.tensor([float(scene.graded) for scene in scenes]).view(-1, 1, 1, 1)
    slope = ((0.5 - y / PIXELS) * 0.5).view(1, 1, PIXELS, PIXELS) * graded  # lighter above, darker below
    picture = (ground[:, :, None, None] + slope).clamp(0.02, 0.98)
    picture = picture.expand(count, 3, PIXELS, PIXELS).clone()
    mask = torch.zeros(count, PIXELS, PIXELS, dtype=torch.bool)
    for number in range(2):
        rows = [row for row, scene in enumerate(scenes) if len(scene.items) > number]
        if not rows:
            continue
        items = [scenes[row].items[number] for row in rows]
        colour, coverage, aesthetic = _draw_items(items, x, y, generator)
        picture[rows] = picture[rows].lerp(colour, coverage[:, None])
        mask[rows] |= (coverage > 0.5) & (aesthetic != 0)[:, None, None]
    return picture.clamp(0, 1) * 2 - 1, mask


def _draw_items(
    items: Sequence[Item], x: torch.Tensor, y: torch.Tensor, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Textured paint [b, 3, 48, 48], coverage [b, 48, 48] and aesthetic index [b] of one item a picture."""
    count = len(items)
    shape = torch.tensor([SHAPES.index(item.shape) for item in items])
    aesthetic = torch.tensor([AESTHETICS.index(item.aesthetic) for item in items])
    centre = torch.tensor([CENTRES[item.position] for item in items], dtype=torch.float32)
    radius = torch.tensor([RADII[item.size] for item in items])
    paint = torch.tensor([PAINT[item.colour] for item in items])
    if generator is not None:
        centre = centre + torch.rand(count, 2, generator=generator) - 0.5
        radius = radius * (0.96 + 0.08 * torch.rand(count, generator=generator))
        paint = (paint + 0.06 * torch.rand(count, 3, generator=generator) - 0.03).clamp(0, 1)
    x = x - centre[:, 0, None, None]
    y = y - centre[:, 1, None, None]
    u, v = x / radius[:, None, None], y / radius[:, None, None]
    black, white = _texture(aesthetic, u, v, x, y)
    colour = paint[:, :, None, None] * (1 - black)[:, None]
    colour = colour.lerp(torch.ones(()), white[:, None])
    return colour, _coverage(shape, u, v, radius), aesthetic


def item_mask(item: Item) -> torch.Tensor:
    """The pixels [48, 48] (bool) that an item covers when it stands exactly where its words say."""
    x, y = _grid()
    return _draw_items([item], x, y, None)[1][0] > 0.5


def aesthetic_mask(scene: Scene) -> torch.Tensor:
    """Ground-truth-like mask [48, 48] (bool) of the aesthetic item of a *generated* picture of `scene`.

    It is rendered from the words (slot, size and shape), so it is right up to the model's small liberties.
    """
    item = scene.aesthetic_item
    return torch.zeros(PIXELS, PIXELS, dtype=torch.bool) if item is None else item_mask(item)


def token_mask(mask: torch.Tensor, threshold: float = 0.25) -> torch.Tensor:
    """Bring pixel masks [..., 48, 48] to image tokens [..., 12, 12] (bool), row-major like the tokens.

    A token belongs to the item when at least `threshold` of its 4 by 4 pixels do.
    """
    side = mask.shape[-1] // TOKEN_PIXELS
    blocks = mask.float().unflatten(-1, (side, TOKEN_PIXELS)).unflatten(-3, (side, TOKEN_PIXELS))
    return blocks.mean(dim=(-3, -1)) >= threshold
