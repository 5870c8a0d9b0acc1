"""What plans are measured by, on errors that are known by heart."""

from __future__ import annotations

import numpy as np
import pytest

from accelaes_export.tuning.measuring import Curve, curve_steps, errors

PICTURES = np.linspace(0.5, 1.5, 24)
"""How hard each picture is."""


def run(steps):
    """Errors that fall by 1 dB a step."""
    return PICTURES * 10 ** (-steps / 10)


@pytest.fixture
def curve():
    return Curve({steps: run(steps) for steps in (7, 14, 20, 28)}, 160, "2026-11-28")


def test_a_plan_is_worth_as_many_dense_steps_as_have_its_error(curve):
    quality = curve.quality(run(16.5), run(3))
    assert quality.dense_steps[0] == pytest.approx(16.5) and quality.psnr[0] == pytest.approx(16.5)
    # The same prompts are harder for the plan and for the curve: the interval is of what is left.
    assert quality.dense_steps[2] - quality.dense_steps[1] < 1e-6 < quality.psnr[2] - quality.psnr[1]
    assert quality.psnr_to_dense[0] == pytest.approx(3)
    assert quality.worst == pytest.approx(16.5 - 10 * np.log10(1.5))
    assert (quality.pictures, quality.exact_steps, quality.date) == (24, 160, "2026-11-28")


def test_a_plan_that_is_uneven_is_less_sure(curve):
    uneven = run(16.5) * np.where(np.arange(24) % 2, 1.9, 0.1)
    low, high = curve.quality(uneven, run(3)).dense_steps[1:]
    assert high - low > 1


def test_beyond_the_curve_it_is_worth_the_longest_or_shortest_run(curve):
    assert curve.quality(run(60), run(60)).dense_steps == pytest.approx((28, 28, 28))
    assert curve.quality(run(2), run(2)).dense_steps == pytest.approx((7, 7, 7))
    assert curve.quality(np.zeros(24), np.zeros(24)).psnr[0] == 120


def test_a_curve_has_the_models_own_steps_and_none_near_the_exact_ones():
    assert curve_steps(28, 160) == [7, 10, 14, 20, 28, 39, 56]
    assert curve_steps(28, 40) == [7, 10, 14, 20, 28]
    assert curve_steps(4, 160) == [2, 3, 4, 6, 8, 12]


def test_errors_are_of_whole_pictures_or_videos():
    made, right = np.zeros((2, 3, 4, 4, 3), np.float32), np.ones((2, 3, 4, 4, 3), np.float32)
    assert errors(list(made), list(right)) == pytest.approx([1, 1])
    assert errors([made[0]], [right[0] * 0.5]) == pytest.approx([0.25])
