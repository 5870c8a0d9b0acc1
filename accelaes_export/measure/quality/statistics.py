"""Figures over pictures with confidence intervals: prompts are resampled, with all their seeds.

Pictures of one prompt resemble each other, so prompts are what is drawn anew, with replacement; the interval is between
the 2.5th and 97.5th percentile of the figure over the resamples (Efron's percentile bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from accelaes_export.measure.quality.report import Interval

RESAMPLES = 2000
CONFIDENCE = 0.95
_NUMBERS_AT_ONCE = 1 << 22  # 32 MB of resampled values

Values = NDArray[np.float64]
Statistic = Callable[[Values], Values]
"""Of values [..., count] with NaN where a picture has none, over the last axis; NaN where none has any."""


def mean(values: Values) -> Values:
    """Arithmetic mean of the values there are."""
    there = ~np.isnan(values)
    count = there.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Values = np.where(there, values, 0.0).sum(axis=-1) / count
    return np.where(count > 0, result, np.nan)


def median(values: Values) -> Values:
    """Median of the values there are."""
    there = (~np.isnan(values)).sum(axis=-1)
    result: Values = np.nanmedian(np.where(there[..., None] > 0, values, 0.0), axis=-1)
    return np.where(there > 0, result, np.nan)


def psnr_of_mean_error(values: Values) -> Values:
    """Of PSNRs in dB: that of the mean squared error, so that one bad picture counts as what it is."""
    with np.errstate(divide="ignore"):
        result: Values = -10 * np.log10(mean(10 ** (-values / 10)))
    return result


def interval(values: Values, statistic: Statistic, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """The statistic of all values with its confidence interval; None where there is no value.

    Args:
        values: [prompts, seeds], NaN where a picture has none.
        seed: of the resampling: the same prompts are drawn for every figure of one shape.
    """
    there = ~np.isnan(values)
    if not there.any():
        return None
    values = values[there.any(axis=1)]  # prompts without any value tell nothing
    prompts = len(values)
    low = high = None
    if prompts > 1:
        generator = np.random.default_rng(seed)
        at_once = max(1, _NUMBERS_AT_ONCE // values.size)
        drawn = [
            statistic(values[generator.integers(prompts, size=(count, prompts))].reshape(count, -1))
            for count in (min(at_once, resamples - done) for done in range(0, resamples, at_once))
        ]
        # "lower" and "higher" are values that were drawn: infinite ones can't be interpolated.
        tail = 50 * (1 - CONFIDENCE)
        all_drawn = np.concatenate(drawn)
        low = float(np.percentile(all_drawn, tail, method="lower"))
        high = float(np.percentile(all_drawn, 100 - tail, method="higher"))
    figure = float(statistic(values.reshape(1, -1))[0])
    return Interval(value=figure, low=low, high=high, pictures=int(there.sum()), prompts=prompts)
