"""RAS, region-adaptive sampling: a new focus set at every SPARSE step, by the model's own last predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from accelaes_export.checks import is_number
from accelaes_export.errors import InputError
from accelaes_export.policies.base import BasePolicy, Extrapolation
from accelaes_export.policies.plan import Plan, StepKind, bucket_letter
from accelaes_export.policies.schedule import (
    computed_steps,
    predictions_needed,
    require_steps,
    require_whole,
)
from accelaes_export.policies.words import THRESHOLD, Scope, WordScoring

if TYPE_CHECKING:
    from accelaes_export.policies.base import Policy, Selector


@dataclass(frozen=True)
class RAS(BasePolicy):
    """The tokens the model is surest of are computed, anew at every sparse step, after a dense beginning: RAS.

    Focus tokens by R (the paper's Eq. 1) against cached keys and values (Eq. 2).

    Attributes:
        ratio: n/N of sparse steps; with `ramp` their average.
        ramp: start above the average and end below it, in the bundle's buckets, instead of one bucket throughout.
        metric: "std" chooses the smallest deviation over channels, "norm" the largest L2 norm.
        starvation: k of exp(∓k D); 0 lets tokens starve.
        warmup: dense steps at the beginning.
        resets: dense steps in between, as shares of the run: .4 and .7 are steps 12 and 20 of 28.
        interval: one computed step in `interval` after the warm-up, StepCache on top; 1 skips none. Resets are never
            skipped, nor is the last step where any is.
        order: how tokens that don't run are predicted: 0 holds their last prediction (the paper's), 1 and 2 extrapolate
            it.
        reach: furthest they are extrapolated, in gaps between a token's last two computations; None: no limit.
        theta: θ, how far past each step the prediction fed to the scheduler is extrapolated, in steps.
        cache_reach: furthest the background's keys and values are extrapolated, in gaps; 0: taken as they are.
        mask_share: n/N of the tokens with the largest affinity to the prompt's aesthetic words, which run at every
            sparse step (union with AesMask); the last warm-up step builds that mask. 0: none.
        threshold, scope: of that mask's words, as AccelAes has them.

    Raises:
        InputError: for an option outside its range.
    """

    ratio: float = 0.5
    ramp: bool = False
    metric: Literal["std", "norm"] = "std"
    starvation: float = 0.1
    warmup: int = 4
    resets: tuple[float, ...] = (0.4, 0.7)
    interval: int = 1
    order: int = 0
    reach: float | None = 1.0
    theta: float = 0.0
    cache_reach: float = 0.0
    mask_share: float = 0.0
    threshold: float = THRESHOLD
    scope: Scope = "phrase"

    name: ClassVar[str] = "ras"

    def __post_init__(self) -> None:
        _require_between("ratio", self.ratio, self.ratio != 0 and self.ratio != 1)
        _require_between("mask_share", self.mask_share, self.mask_share != 1)
        if self.metric not in ("std", "norm"):
            raise InputError(f"metric is {self.metric!r}; allowed are 'std' and 'norm': give one of them.")
        if not is_number(self.starvation) or not 0 <= self.starvation < math.inf:
            raise InputError(f"starvation is {self.starvation!r}; give a number of at least 0, such as 0.1.")
        if not isinstance(self.ramp, bool):
            raise InputError(f"ramp is {self.ramp!r}; give true or false.")
        require_whole("warmup", self.warmup, at_least=1)
        require_whole("interval", self.interval, at_least=1)
        if not isinstance(self.resets, (tuple, list)):
            raise InputError(f"resets is {self.resets!r}; give a list of shares of the run, such as 0.4 and 0.7.")
        for share in self.resets:
            _require_between("Each of resets", share, True)
        object.__setattr__(self, "resets", tuple(self.resets))  # a manifest stores a list
        _ = self.extrapolation, self.word_scoring  # their own checks

    @property
    def extrapolation(self) -> Extrapolation:
        return Extrapolation(self.order, reach=self.reach, theta=self.theta, cache_reach=self.cache_reach)

    @property
    def word_scoring(self) -> WordScoring:
        return WordScoring(self.threshold, self.scope)

    def plan(self, steps: int, buckets: Sequence[float], shares: Sequence[float] = ()) -> Plan:
        """T = 28 by default, buckets .25 .5: ``DDDDbbbbbbbbDbbbbbbbDbbbbbbb``, cost 17.

        Raises:
            InputError: for fewer than 2 steps, or a ratio that the buckets don't give.
        """
        require_steps(steps)
        first = max(self.warmup, predictions_needed(self.order) if self.interval > 1 else 1)
        resets = {math.ceil(share * steps - 1e-9) for share in self.resets}
        now = computed_steps(steps, first, self.interval)
        symbols = ["D" if i < first or i in resets else "s" if now[i] else "." for i in range(steps)]
        letters = iter(self._letters(symbols.count("s"), buckets))
        return Plan("".join(next(letters) if symbol == "s" else symbol for symbol in symbols), tuple(buckets))

    def _letters(self, count: int, buckets: Sequence[float]) -> list[str]:
        """The buckets of `count` sparse steps, in order."""
        if not count:
            return []
        lowest = self.mask_share - 1e-6
        if not self.ramp or not buckets:
            chosen = [bucket_letter(self.ratio, buckets)] * count
            if self.ratio < lowest:
                raise InputError(
                    f"mask_share is {self.mask_share:g}, more than the ratio {self.ratio:g} of tokens that run at all: "
                    "give a smaller mask_share, or a larger ratio."
                )
            return chosen
        usable = [bucket for bucket in buckets if bucket >= lowest]
        if not usable or not usable[0] - 1e-6 <= self.ratio <= usable[-1] + 1e-6:
            raise InputError(
                f"An average ratio of {self.ratio:g} can't be made of this bundle's buckets "
                f"{', '.join(f'{b:g}' for b in usable) or 'none'} (mask_share {self.mask_share:g}): give a ratio "
                "between them."
            )
        return [bucket_letter(fraction, buckets) for fraction in ramped(self.ratio, count, usable)]

    def without_mask(self) -> Policy:
        """Chooses by its metric alone."""
        return replace(self, mask_share=0.0)

    def selector(self) -> Selector | None:
        from accelaes_export.policies.moving import RegionAdaptive  # loads torch, which a plan alone doesn't need

        mask_step = self.warmup - 1 if self.mask_share else None
        return RegionAdaptive(self.metric, self.starvation, kept=self.mask_share, mask_step=mask_step)

    def affinity_steps(self, plan: Plan) -> frozenset[int]:
        """The last warm-up step, where the mask plays a part and the plan has a SPARSE step."""
        used = self.mask_share > 0 and plan.count(StepKind.SPARSE) > 0
        return frozenset({self.warmup - 1}) if used else frozenset()


def ramped(average: float, count: int, buckets: Sequence[float]) -> list[float]:
    """`count` buckets, falling, near the line from as far above `average` as below it, their mean as near as they give.

    Args:
        average: between the smallest and the largest of `buckets` (ascending).
    """
    reach = max(min(buckets[-1] - average, average - buckets[0]), 0.0)
    chosen: list[float] = []
    wanted = given = 0.0
    for step in range(count):
        wanted += average + reach * (1 - (2 * step + 1) / count)
        # What rounding left over is made good by the next one, so the sums never part by more than half a gap.
        best = min(buckets, key=lambda bucket: abs(given + bucket - wanted))
        chosen.append(best)
        given += best
    return sorted(chosen, reverse=True)


def _require_between(option: str, value: object, allowed: bool) -> None:
    if not is_number(value) or not 0 <= value <= 1 or not allowed:
        raise InputError(f"{option} is {value!r}; allowed are numbers between 0 and 1: give a share.")
