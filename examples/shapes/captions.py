"""Scenes in words and back: `caption` writes a scene down, `parse` reads the scene from a caption.

    an intricate red star on the left, plain blue background
    a small glossy green circle at the top and a large yellow square on the right, graded gray background

What a caption leaves unsaid has a default: a size not named is medium, a position not named is center, a
background not named is plain gray. So `parse(caption(scene, rng)) == scene` for every scene.
"""

from __future__ import annotations

import random
import re

from examples.shapes.scenes import (
    AESTHETICS,
    BACKGROUNDS,
    COLOURS,
    POSITIONS,
    SHAPES,
    SIZES,
    Item,
    Scene,
    heldout_scenes,
)

PLACES = {
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top", "on top"),
    "bottom": ("at the bottom", "on the bottom"),
    "center": ("in the center", "in the middle"),
}
SYNONYMS = {
    "big": "large",
    "huge": "large",
    "tiny": "small",
    "little": "small",
    "grey": "gray",
    "middle": "center",
    "centre": "center",
    "gradient": "graded",
    "solid": "plain",
}
OPENINGS = ("a picture of ", "an image of ", "a drawing of ", "a photo of ")
# Words without a meaning of their own: the grammar's glue, then words people type around a prompt. Each is one
# token, so that an unforeseen word costs one position of the prompt and not five.
GLUE = (
    *("a", "an", "the", "and", "with", "on", "in", "at", "of", "side"),
    *("background", "picture", "image", "drawing", "photo"),
)
GROUND_STYLES = ("plain", "graded")
OTHER = (
    *(
        "to",
        "is",
        "one",
        "two",
        "very",
        "no",
        "shape",
        "shapes",
        "object",
        "beautiful",
        "high",
        "low",
        "quality",
    ),
    *(
        "blurry",
        "bright",
        "dark",
        "above",
        "below",
        "next",
        "over",
        "colour",
        "color",
        "colorful",
        "ugly",
        "bad",
    ),
)
PUNCTUATION = (",", ".")

MEANINGFUL = (*SHAPES, *COLOURS, *SIZES, *POSITIONS, *AESTHETICS[1:], *BACKGROUNDS, *GROUND_STYLES)
GRAMMAR_WORDS = tuple(dict.fromkeys((*MEANINGFUL, *SYNONYMS, *GLUE)))
WORDS = tuple(dict.fromkeys((*GRAMMAR_WORDS, *OTHER)))


def caption(scene: Scene, rng: random.Random) -> str:
    """Write `scene` in words; `rng` varies the order, the synonyms and what is left to the defaults."""
    phrases = [_item_phrase(item, rng, alone=len(scene.items) == 1) for item in scene.items]
    text = rng.choice((" and ", " and ", " with ", ", ")).join(phrases)
    if rng.random() < 0.1:
        opening = rng.choice(OPENINGS)
        text = opening + text if text.startswith("a") else text  # not "a photo of on the left ..."
    if (scene.background, scene.graded) == ("gray", False) and rng.random() < 0.3:
        return text
    styles = ("graded", "graded", "gradient") if scene.graded else ("plain", "plain", "solid")
    style = rng.choice(styles)
    ground = f"{style} {_maybe('gray', 'grey', scene.background, rng)} background"
    order = rng.random()
    if order < 0.6:
        return f"{text}, {ground}"
    if order < 0.85:
        return f"{text} on a {ground}"
    return f"{ground}, {text}"


def _maybe(word: str, synonym: str, value: str, rng: random.Random) -> str:
    return synonym if value == word and rng.random() < 0.3 else value


def _item_phrase(item: Item, rng: random.Random, alone: bool) -> str:
    size = "" if item.size == "medium" and rng.random() < 0.7 else item.size
    if rng.random() < 0.15:
        size = {"small": rng.choice(("tiny", "little")), "large": rng.choice(("big", "huge"))}.get(size, size)
    before_colour = [item.aesthetic, size]
    if rng.random() < 0.5:
        before_colour.reverse()
    words = " ".join(word for word in (*before_colour, item.colour, item.shape) if word)
    phrase = f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    if alone and item.position == "center" and rng.random() < 0.4:
        return phrase
    place = PLACES[item.position][rng.random() < 0.2]
    return f"{place} {phrase}" if rng.random() < 0.15 else f"{phrase} {place}"


def parse(text: str) -> Scene:
    """Read the scene from a caption. Words that are not in the grammar are passed over.

    Raises ValueError, naming what is missing, where the text does not describe one scene.
    """
    words = [SYNONYMS.get(word, word) for word in re.findall(r"[a-z]+", text.lower())]
    background, graded, words = _take_background(words)
    items: list[dict[str, str]] = []
    pending: dict[str, str] = {}
    for word in words:
        if word in SHAPES:
            items.append({**pending, "shape": word})
            pending = {}
        elif word in POSITIONS and items and not pending and "position" not in items[-1]:
            items[-1]["position"] = word  # "... star on the left"
        elif field := _field_of(word):
            pending[field] = word  # "on the left a small red ..." waits for its shape
    for item in items:
        if "colour" not in item:
            colours = ", ".join(COLOURS)
            raise ValueError(f"the {item['shape']} in {text!r} has no colour; name one of {colours}")
    if pending or not items:
        lonely = " ".join(pending.values()) or "a background"
        raise ValueError(f"{text!r} names {lonely} but no shape for it; name one of {', '.join(SHAPES)}")
    return Scene(tuple(Item(**item) for item in items), background, graded)


def _take_background(words: list[str]) -> tuple[str, bool, list[str]]:
    """Split "plain blue background" off: its colour, whether it is graded, and the other words."""
    if "background" not in words:
        return "gray", False, words
    end = words.index("background")
    start = end
    background, graded = "gray", False
    while start > 0 and words[start - 1] in (*BACKGROUNDS, *GROUND_STYLES):
        start -= 1
        if words[start] in BACKGROUNDS:
            background = words[start]
        else:
            graded = words[start] == "graded"
    return background, graded, words[:start] + words[end + 1 :]


def _field_of(word: str) -> str | None:
    fields = {"colour": COLOURS, "size": SIZES, "position": POSITIONS, "aesthetic": AESTHETICS[1:]}
    return next((field for field, allowed in fields.items() if word in allowed), None)


def heldout_prompts(count: int = 128, seed: int = 1) -> list[str]:
    """`count` captions of scenes that no training run has ever drawn."""
    rng = random.Random(seed)
    return [caption(scene, rng) for scene in heldout_scenes(count, seed)]
