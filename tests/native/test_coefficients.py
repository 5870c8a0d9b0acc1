"""Learned coefficients natively: the preset's graph holds them, and runs are Python's."""

from __future__ import annotations

import numpy as np
import pytest

from accelaes_export.building.builder import build
from accelaes_export.policies import Coefficients, DriftSchedule, TokenClass
from tests.native.building import ONNXRUNTIME
from tests.native.library import NativeError
from tests.native.reference import setting
from tests.native.test_runs import require_same, run_of

pytestmark = pytest.mark.xdist_group("native")

PLAN = "DDDbb.bbD.b"


def sigmas(steps: int) -> np.ndarray:
    """As `reference.setting` has them."""
    ramp = np.linspace(1, 1 / steps, steps, dtype=np.float32)
    return np.append(2 * ramp / (1 + ramp), 0).astype(np.float32)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A bundle with one preset whose weights are like a trained one's: near to holding, other ones in every class."""
    rng = np.random.default_rng(0)

    def one(age: int, gap: int, earlier: int) -> TokenClass:
        halves = ((1.0, 0.0, 0.0) + 0.2 * rng.standard_normal(3) for _ in range(2))
        return TokenClass(age, gap, earlier, *(tuple(half.tolist()) for half in halves))

    every = [(age, gap, earlier) for age in range(4) for gap in range(4) for earlier in range(3)]
    steps = tuple(tuple(one(*own) for own in every) for _ in PLAN)
    fitted = Coefficients(tuple(sigmas(len(PLAN)).tolist()), 4.5, steps)
    plans = {8: DriftSchedule(PLAN, theta=0.2, trend=1.0, cache_reach=0.5, coefficients=fitted)}
    output = tmp_path_factory.mktemp("learned") / "bundle"
    return build(model="shapes", output=output, plans=plans, presets=["drift:budget=8"], batch=2)


@pytest.mark.parametrize(("images", "guided", "seed"), [(1, True, 0), (2, True, 1), (2, False, 2)])
def test_a_run_by_learned_coefficients_is_pythons(native, learned, images, guided, seed):
    opened = native.open(learned.path, library=str(ONNXRUNTIME).encode(), threads=1)
    preset = learned.manifest.geometry.presets[0]
    given = setting(learned, preset, PLAN, seed=seed, images=images, guided=guided)
    assert require_same(learned, opened, given) == PLAN


def test_another_plan_and_other_noise_levels_are_refused(native, learned):
    opened = native.open(learned.path, library=str(ONNXRUNTIME).encode(), threads=1)
    preset = learned.manifest.geometry.presets[0]
    given = setting(learned, preset, PLAN.replace("b", "D"), seed=0)
    with pytest.raises(NativeError, match=f"has coefficients for the plan {PLAN} and the run has DDDDD.DDD.D"):
        run_of(opened, given)
    given = setting(learned, preset, PLAN, seed=0)
    given.sigmas[3] += 0.01
    with pytest.raises(NativeError, match="has coefficients for other noise levels than the run's"):
        run_of(opened, given)
