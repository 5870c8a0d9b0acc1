"""Captions, pictures and masks of the shapes world agree with each other."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.shapes.captions import caption, heldout_prompts, parse
from examples.shapes.drawing import PIXELS, aesthetic_mask, draw, item_mask, token_mask
from examples.shapes.scenes import (
    AESTHETICS,
    POSITIONS,
    SHAPES,
    SIZES,
    Item,
    Scene,
    heldout_scenes,
    random_scene,
    training_scenes,
)

scenes = st.integers(0, 2**32).map(lambda seed: random_scene(random.Random(seed)))
items = st.builds(
    Item,
    shape=st.sampled_from(SHAPES),
    colour=st.just("red"),
    size=st.sampled_from(SIZES),
    position=st.sampled_from(POSITIONS),
    aesthetic=st.sampled_from(AESTHETICS),
)


@given(scenes, st.integers(0, 2**32))
def test_the_parser_inverts_every_caption(scene: Scene, wording: int) -> None:
    assert parse(caption(scene, random.Random(wording))) == scene


def test_the_prompt_of_the_readme_is_in_the_grammar() -> None:
    star = Item("star", "red", position="left", aesthetic="intricate")
    prompt = "an intricate red star on the left, plain blue background"
    assert parse(prompt) == Scene((star,), "blue", graded=False)


def test_two_objects_and_a_graded_background_are_read() -> None:
    prompt = "a small glossy green circle at the top and a large yellow square on the right, graded gray background"
    circle = Item("circle", "green", "small", "top", "glossy")
    square = Item("square", "yellow", "large", "right")
    assert parse(prompt) == Scene((circle, square), "gray", graded=True)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a star on the left", "the star .* has no colour; name one of red"),
        ("an intricate red", "names intricate red but no shape for it; name one of circle"),
        ("plain blue background", "names a background but no shape"),
        ("a glossy red star on the left and a vibrant blue star on the right", "at most one item"),
        ("a red star in the center and a blue star on the right", "two different sides .* not center and right"),
        ("a big red star on the left and a blue star at the top", "large left and medium top are too close"),
    ],
)
def test_a_caption_that_describes_no_scene_is_refused_with_what_is_missing(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(prompt)


def test_a_scene_of_unknown_words_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="shape 'hexagon' is not one of 'circle'"):
        Item("hexagon", "red")
    with pytest.raises(ValueError, match="background 'pink' is not one of white"):
        Scene((Item("star", "red"),), "pink")


def test_training_never_draws_a_held_out_scene_and_held_out_prompts_are_nothing_else() -> None:
    assert not any(scene.is_held_out() for scene in training_scenes(3000, seed=0))
    prompts = heldout_prompts(128)
    assert len(set(prompts)) == 128
    assert all(parse(prompt).is_held_out() for prompt in prompts)
    assert prompts == heldout_prompts(128)


@given(scenes)
def test_naming_the_objects_in_another_order_does_not_let_a_scene_out_of_the_held_out_ones(scene: Scene) -> None:
    assert Scene(scene.items[::-1], scene.background, scene.graded).is_held_out() == scene.is_held_out()


@given(items.filter(lambda item: item.aesthetic))
def test_the_mask_covers_exactly_the_described_object(item: Item) -> None:
    red, blue = (Scene((replace(item, colour=colour, aesthetic=""),), "white") for colour in ("red", "blue"))
    pictures, _ = draw([red, blue])
    change = (pictures[0] - pictures[1]).abs().sum(dim=0)  # the paint shows through as far as a pixel is covered
    covered = change > change.max() / 2
    scene = Scene((item,), "white")
    assert torch.equal(aesthetic_mask(scene), covered)
    assert torch.equal(draw([scene])[1][0], covered)


def test_a_plain_object_has_no_aesthetic_mask_and_leaves_that_of_its_neighbour() -> None:
    plain, glossy = Item("star", "red", position="left"), Item("circle", "blue", "large", "right", "glossy")
    pair = Scene((plain, glossy))
    _, masks = draw([Scene((plain,)), pair])
    assert not masks[0].any()
    assert torch.equal(masks[1], item_mask(glossy))
    assert torch.equal(aesthetic_mask(pair), item_mask(glossy))


@given(scenes.filter(lambda scene: len(scene.items) == 2))
def test_two_objects_do_not_touch(scene: Scene) -> None:
    first, second = (item_mask(item) for item in scene.items)
    assert not (first & second).any()


@given(scenes)
def test_small_variations_keep_objects_apart_and_inside(scene: Scene) -> None:
    pictures, masks = draw([scene] * 4, torch.Generator().manual_seed(0))
    assert pictures.shape == (4, 3, PIXELS, PIXELS)
    assert pictures.abs().max() <= 1
    nominal = aesthetic_mask(scene)
    for mask in masks:
        union = (mask | nominal).sum()
        assert union == 0 or (mask & nominal).sum() / union > 0.5
    border = torch.cat(
        [masks[:, 0].flatten(), masks[:, -1].flatten(), masks[..., 0].flatten(), masks[..., -1].flatten()]
    )
    assert not border.any()


def test_a_token_belongs_to_the_object_when_a_quarter_of_its_pixels_do() -> None:
    mask = torch.zeros(PIXELS, PIXELS, dtype=torch.bool)
    mask[0:4, 4:8] = True  # a whole token
    mask[8:10, 0:2] = True  # a quarter of one
    mask[20, 20:23] = True  # three pixels
    tokens = token_mask(mask)
    assert tokens.shape == (12, 12)
    assert tokens.nonzero().tolist() == [[0, 1], [2, 0]]
    assert token_mask(mask[None], threshold=0.1).sum() == 3


def test_held_out_scenes_are_rare_but_varied() -> None:
    rng = random.Random(5)
    share = sum(random_scene(rng).is_held_out() for _ in range(4000)) / 4000
    assert 0.04 < share < 0.09
    shapes = {item.shape for scene in heldout_scenes(64, seed=1) for item in scene.items}
    assert shapes == set(SHAPES)
