"""Guidance, against loops over tokens."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelaes_export.errors import InputError
from accelaes_export.policies.base import SpatialGuidance
from accelaes_export.policies.guidance import at_length_of, guided, softened_mask, spatial

torch.set_num_threads(1)


def predictions(seed, dtype=torch.float32, b=2, N=6, d=3):
    generator = torch.Generator().manual_seed(seed)
    uncond, cond = torch.randn(2, b, N, d, generator=generator).to(dtype)
    return uncond, cond, torch.rand(b, N, generator=generator)


@given(st.integers(0, 1000), st.floats(1, 4), st.floats(4, 9))
@settings(deadline=None, max_examples=40)
def test_every_token_is_guided_by_its_own_scale(seed, background, focus):
    uncond, cond, mask = predictions(seed)
    result = spatial(uncond, cond, mask, SpatialGuidance(focus, background))
    for image in range(2):
        for token in range(6):
            g = background + (focus - background) * mask[image, token].double()
            expected = uncond[image, token].double() + g * (cond[image, token].double() - uncond[image, token].double())
            assert torch.allclose(result[image, token].double(), expected, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 1000), st.floats(1, 9), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
@settings(deadline=None, max_examples=40)
def test_equal_scales_are_plain_guidance_to_the_bit(seed, scale, dtype):
    uncond, cond, mask = predictions(seed, dtype)
    result = spatial(uncond, cond, mask, SpatialGuidance(scale, scale))
    assert torch.equal(result, uncond + scale * (cond - uncond))  # what diffusers' pipelines compute
    assert torch.equal(result, guided(uncond, cond, scale))


def test_a_hard_mask_gives_each_region_plain_guidance_at_its_scale():
    uncond, cond, _ = predictions(0)
    mask = torch.tensor([[1.0, 0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0]])
    result = spatial(uncond, cond, mask, SpatialGuidance(6.0, 4.5))
    expected = torch.where(mask[..., None] == 1, guided(uncond, cond, 6.0), guided(uncond, cond, 4.5))
    assert torch.equal(result, expected)


def test_a_guided_prediction_is_scaled_to_the_length_of_the_conditional_one():
    uncond, cond, _ = predictions(0)
    whole = guided(uncond, cond, 4.0)
    whole[0, 2] = 0
    result = at_length_of(cond, whole)
    for image in range(2):
        for token in range(6):
            length = math.sqrt(sum(x * x for x in whole[image, token].tolist()))
            wanted = math.sqrt(sum(x * x for x in cond[image, token].tolist()))
            expected = [x * wanted / length if length else 0.0 for x in whole[image, token].tolist()]
            assert result[image, token].tolist() == pytest.approx(expected, rel=1e-5)


def test_the_predictions_dtype_is_kept():
    uncond, cond, mask = predictions(0, torch.bfloat16)
    assert spatial(uncond, cond, mask, SpatialGuidance(7.0, 1.0)).dtype == torch.bfloat16


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 5), st.floats(0.3, 4))
@settings(deadline=None, max_examples=30)
def test_a_softened_mask_is_the_gaussian_mean_over_the_grid(seed, rows, columns, width):
    mask = torch.rand(1, rows * columns, generator=torch.Generator().manual_seed(seed)).round()
    soft = softened_mask(mask, (rows, columns), width)
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    for i, (r, c) in enumerate(cells):
        weights = [math.exp(-((r - y) ** 2 + (c - x) ** 2) / (2 * width**2)) for y, x in cells]
        expected = sum(w * mask[0, j].item() for j, w in enumerate(weights)) / sum(weights)
        assert soft[0, i].item() == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(softened_mask(torch.ones_like(mask), (rows, columns), width), torch.ones_like(mask))


def test_no_softness_leaves_the_mask_alone():
    mask = torch.tensor([[1.0, 0.0]])
    for width in (0, 0.01, 1e-30):
        assert torch.equal(softened_mask(mask, (1, 2), width), mask)


def test_a_grid_of_another_picture_is_refused():
    with pytest.raises(InputError, match="6 tokens.*grid of 2 x 2 holds 4"):
        softened_mask(torch.zeros(1, 6), (2, 2), 1.0)
