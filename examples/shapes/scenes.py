"""What a picture of the shapes world holds: one or two objects, where they are, and what is behind them.

A `Scene` is the ground truth from which everything else follows: its caption (captions.py), its picture and
masks (drawing.py), its classes for the judge (judge.py). Which scenes may be trained on is decided here by a hash.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "medium", "large")
POSITIONS = ("left", "right", "top", "bottom", "center")
AESTHETICS = ("", "intricate", "detailed", "glossy", "vibrant")  # "" is a flat fill, no word
BACKGROUNDS = ("white", "gray", "black", "blue", "beige")

SIDES = ("left", "right", "top", "bottom")  # where two objects of one picture may stand
FACING = ({"left", "right"}, {"top", "bottom"})

HELD_OUT_FRACTION = 16  # one scene in sixteen is never trained on


@dataclass(frozen=True)
class Item:
    """One object of a scene; every field holds a word of the tuples above."""

    shape: str
    colour: str
    size: str = "medium"
    position: str = "center"
    aesthetic: str = ""

    def __post_init__(self) -> None:
        for field, allowed in (
            ("shape", SHAPES),
            ("colour", COLOURS),
            ("size", SIZES),
            ("position", POSITIONS),
            ("aesthetic", AESTHETICS),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(f"{field} {value!r} is not one of {', '.join(map(repr, allowed))}")


@dataclass(frozen=True)
class Scene:
    """One or two items, in the order in which the caption names them, before a plain or graded background."""

    items: tuple[Item, ...]
    background: str = "gray"
    graded: bool = False

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"background {self.background!r} is not one of {', '.join(BACKGROUNDS)}")
        if not 1 <= len(self.items) <= 2:
            raise ValueError(f"a scene holds one or two items, not {len(self.items)}")
        if len(self.items) == 2:
            _check_room(*self.items)
        if sum(item.aesthetic != "" for item in self.items) > 1:
            raise ValueError("at most one item of a scene carries an aesthetic word")

    @property
    def aesthetic_item(self) -> Item | None:
        """The item that carries an aesthetic word, or None."""
        return next((item for item in self.items if item.aesthetic), None)

    def is_held_out(self) -> bool:
        """True for the scenes that are never trained on; the order of the items does not matter."""
        key = repr((sorted(repr(item) for item in self.items), self.background, self.graded))
        return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT_FRACTION == 0


def _check_room(first: Item, second: Item) -> None:
    """Raise ValueError where two items would touch or hide one another."""
    positions = {first.position, second.position}
    if len(positions) == 1 or "center" in positions:
        raise ValueError(
            f"two items stand on two different sides ({', '.join(SIDES)}), not {first.position} and {second.position}"
        )
    sizes = {first.size, second.size}
    if positions not in FACING and "small" not in sizes and "large" in sizes:
        raise ValueError(
            f"{first.size} {first.position} and {second.size} {second.position} are too close: "
            "around a corner, beside a large item there is room for a small one only"
        )


def random_scene(rng: random.Random) -> Scene:
    """Draw any scene, held out or not: 60 % hold two items, 80 % an item with an aesthetic word."""
    positions = rng.sample(SIDES, 2) if rng.random() < 0.6 else [rng.choice(POSITIONS)]
    sizes = [rng.choice(SIZES) for _ in positions]
    if len(positions) == 2 and set(positions) not in FACING and "large" in sizes:
        sizes[rng.randrange(2)] = "small"  # room for a large one

    background = rng.choice(BACKGROUNDS)
    aesthetics = [""] * len(positions)
    aesthetics[rng.randrange(len(positions))] = rng.choice(AESTHETICS)
    items = tuple(
        Item(
            shape=rng.choice(SHAPES),
            colour=rng.choice([colour for colour in COLOURS if colour != background]),
            size=size,
            position=position,
            aesthetic=aesthetic,
        )
        for position, size, aesthetic in zip(positions, sizes, aesthetics, strict=True)
    )
    return Scene(items, background, graded=rng.random() < 0.5)


def training_scenes(count: int, seed: int) -> list[Scene]:
    """Draw `count` scenes, none of them held out."""
    return _draw(count, seed, held_out=False)


def heldout_scenes(count: int, seed: int) -> list[Scene]:
    """Draw `count` different scenes, all of them held out."""
    return _draw(count, seed, held_out=True)


def _draw(count: int, seed: int, held_out: bool) -> list[Scene]:
    rng = random.Random(seed)
    drawn: list[Scene] = []
    seen: set[Scene] = set()
    while len(drawn) < count:
        scene = random_scene(rng)
        if scene.is_held_out() != held_out or (held_out and scene in seen):
            continue
        seen.add(scene)
        drawn.append(scene)
    return drawn
