"""Figures of merit with intervals: of all prompts, and of prompts drawn anew, the same for all that is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.policy_cases import PolicyCase

DRAWS = 1000

Found = Mapping[str, Mapping[str, np.ndarray]]
"""By label: figures with axes [seeds, prompts], and costs."""


def psnr(errors: np.ndarray) -> float:
    """Of the mean error, so that one bad picture counts as what it is."""
    return float(-10 * np.log10(max(errors.mean(), 1e-12)))


def right(figures: Mapping[str, np.ndarray], pick: np.ndarray) -> float:
    """Share of the objects that are read back right."""
    return float(figures["right"][:, pick].sum() / figures["objects"][:, pick].sum())


def costs(figures: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of a case, in dense steps."""
    return {name: float(figures[name]) for name in ("token_steps", "flop_cost")}


def intervals(
    found: Found, of: Callable[[np.ndarray], Mapping[str, Mapping[str, float]]], draws: int
) -> dict[str, dict[str, dict[str, float]]]:
    """By label and name: a figure of all prompts, with its 95 % interval.

    Args:
        of: figures by label and name, of the prompts of these numbers.
    """
    every = [of(pick) for pick in resampled(found, draws)]
    return {
        label: {name: interval([one[label][name] for one in every]) for name in named}
        for label, named in every[0].items()
    }


def resampled(found: Found, draws: int) -> list[np.ndarray]:
    """Which prompts figures are of: all of them, then drawn anew, with replacement."""
    prompts = next(iter(found.values()))["exact"].shape[1]
    rng = np.random.default_rng(0)
    return [np.arange(prompts), *(rng.integers(0, prompts, prompts) for _ in range(draws))]


def interval(drawn: Sequence[float]) -> dict[str, float]:
    """A figure of all prompts, with the 95 % interval of those of prompts drawn anew."""
    low, high = np.percentile(drawn[1:], [2.5, 97.5]) if len(drawn) > 1 else (drawn[0], drawn[0])
    return {"value": drawn[0], "low": float(low), "high": float(high)}


def curve(found: Found, cases: Mapping[str, PolicyCase], pick: np.ndarray) -> tuple[Any, ...]:
    """Ascending PSNRs of the cases to the exact pictures, and the dense steps that have them; empty without cases."""
    at = sorted((psnr(found[label]["exact"][:, pick]), case.steps) for label, case in cases.items())
    return tuple(zip(*at, strict=True))


def steps_of(value: float, curve: tuple[Any, ...]) -> float:
    """Dense steps of equal PSNR, between those that were measured; at most the most, at least the fewest of them."""
    return float(np.interp(value, curve[0], curve[1]))
