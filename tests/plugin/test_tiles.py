"""Tile configurations: written, coded, tabled, chosen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.plugins.sparse_query_attention import tiles
from accelaes_export.plugins.sparse_query_attention.tiles import ARCHITECTURES, HEAD_DIMS, Tile, choice

sizes = st.sampled_from([16, 32, 64, 128, 256])
any_tile = st.builds(Tile, sizes, sizes, st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 7), st.booleans())


@given(any_tile)
def test_a_tile_is_the_same_written_and_coded(tile):
    assert Tile.parse(str(tile)) == tile
    assert Tile.from_code(tile.code) == tile
    assert 0 < tile.code < 2**31  # a TensorRT tactic


def test_the_code_is_part_of_the_engine_format_and_does_not_change():
    assert str(Tile(128, 64, 4, 3)) == "128x64-w4-s3"
    assert Tile(128, 64, 4, 3).code == 0x76230
    assert Tile(128, 128, 8, 2, descriptors=True).code == 0x77321


@pytest.mark.parametrize("code", [0x76232, 1 << 20, 0x16230, 0x76200, 0])
def test_numbers_that_are_no_tile_are_refused(code):
    with pytest.raises(ValueError):
        Tile.from_code(code)


@pytest.mark.parametrize("text", ["128x64", "128x64-w4", "100x64-w4-s3", "128x64-w3-s3", "128x64-w4-s9", "large"])
def test_what_is_no_tile_is_refused(text):
    with pytest.raises(ValueError, match="tile"):
        Tile.parse(text)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_table_has_a_choice_for_every_architecture_and_head_size_and_says_where_it_comes_from(architecture):
    for head_dim in HEAD_DIMS:
        chosen = choice(architecture, head_dim)
        assert chosen.best in chosen.candidates
        assert len(set(chosen.candidates)) == len(chosen.candidates) > 1
        assert chosen.origin.startswith(("untuned", "measured on"))
        assert not chosen.best.descriptors or int(architecture[2:]) >= 90
        assert min(tile.queries for tile in chosen.candidates) >= 64  # what scratch memory is asked for


def test_an_unknown_architecture_and_an_unknown_head_size_are_refused():
    with pytest.raises(ValueError, match="no tiles for sm75; there are sm80, sm86"):
        choice("sm75", 64)
    with pytest.raises(ValueError, match="head sizes up to 256, not 264"):
        choice("sm80", 264)


def test_binary_code_runs_where_cuda_says_it_does():
    runs = {(8, 0): "sm80", (8, 6): "sm86", (8, 7): "sm86", (8, 9): "sm89", (9, 0): "sm90", (10, 0): "sm100"}
    runs |= {(12, 0): "sm120", (7, 5): None, (10, 3): None, (12, 1): None, (11, 0): None}
    assert {gpu: tiles.binary_architecture(*gpu) for gpu in runs} == runs


def test_compiled_on_the_spot_a_gpu_takes_the_tiles_of_the_last_architecture_not_above_it():
    nearest = {(7, 5): None, (8, 0): "sm80", (8, 7): "sm86", (9, 0): "sm90", (10, 3): "sm100", (12, 1): "sm120"}
    assert {gpu: tiles.nearest_architecture(*gpu) for gpu in nearest} == nearest


@given(st.sampled_from(HEAD_DIMS))
def test_parts_of_a_head_are_powers_of_two_that_cover_it_and_no_dearer_than_one(head_dim):
    width, rest = tiles.parts(head_dim)
    assert all(part & (part - 1) == 0 for part in (width, rest))
    assert width + rest >= head_dim
    assert width + rest <= 1 << (head_dim - 1).bit_length()
    assert rest == 0 or rest >= 16  # a tensor core's smallest inner size
    assert tiles.parts(72) == (64, 16)
