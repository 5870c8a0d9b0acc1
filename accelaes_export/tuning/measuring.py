"""What a plan's pictures are worth: PSNR to exact ones, and how many plain dense steps come as near."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from accelaes_export.policies.plan_quality import Interval, PlanQuality

DRAWS = 2000
SHARES = 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0
"""Of the model's own steps: the dense runs that a plan is compared with."""

Errors = NDArray[np.float64]
"""Mean squared error of each picture [P], of values from 0 to 1."""


def errors(made: Sequence[NDArray[np.float32]], right: Sequence[NDArray[np.float32]]) -> Errors:
    """Of pictures, or of videos as a whole."""
    return np.array([np.square(a.astype(np.float64) - b).mean() for a, b in zip(made, right, strict=True)])


@dataclass(frozen=True)
class Curve:
    """Plain dense runs of a model, by their number of steps.

    Attributes:
        runs: errors to the exact pictures.
        exact_steps: of these.
        date: ISO, of the measurement.
    """

    runs: Mapping[int, Errors]
    exact_steps: int
    date: str

    def quality(self, to_exact: Errors, to_dense: Errors) -> PlanQuality:
        """Of a plan's pictures. Intervals from drawing prompts anew, the same ones for plan and curve."""
        count, rng = len(to_exact), np.random.default_rng(0)
        picks = [np.arange(count), *(rng.integers(0, count, count) for _ in range(DRAWS))]
        exact = [_psnr(to_exact[pick]) for pick in picks]
        return PlanQuality(
            psnr=_interval(exact),
            psnr_to_dense=_interval([_psnr(to_dense[pick]) for pick in picks]),
            worst=_psnr(to_exact.max(keepdims=True)),
            dense_steps=_interval([self._steps_of(psnr, pick) for psnr, pick in zip(exact, picks, strict=True)]),
            exact_steps=self.exact_steps,
            pictures=count,
            date=self.date,
        )

    def _steps_of(self, psnr: float, pick: NDArray[np.int64]) -> float:
        """Between the runs on a line; at most the longest's steps, at least the shortest's."""
        at = sorted((_psnr(own[pick]), float(steps)) for steps, own in self.runs.items())
        known, steps = zip(*at, strict=True)
        return float(np.interp(psnr, known, steps))


def curve_steps(steps: int, exact_steps: int) -> list[int]:
    """Of the runs of a curve on a model of so many steps: none is as long as the one that is taken for exact."""
    found = {max(2, round(share * steps)) for share in SHARES}
    return sorted(own for own in found | {steps} if own <= exact_steps // 2 or own == steps)


def _psnr(errors: Errors) -> float:
    """Of the mean error, in dB; equal pictures count as 120 dB."""
    return float(-10 * np.log10(max(errors.mean(), 1e-12)))


def _interval(values: Sequence[float]) -> Interval:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return values[0], float(low), float(high)
