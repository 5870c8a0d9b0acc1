"""AccelAes: focus tokens of a one-shot mask at SPARSE steps, extrapolation at SKIP steps, dense refreshes between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from accelaes_export.errors import InputError, TooFewStepsError
from accelaes_export.policies.base import BasePolicy, Extrapolation, SpatialGuidance, require_spatial_guidance
from accelaes_export.policies.plan import Plan, StepKind, bucket_letter
from accelaes_export.policies.schedule import computed_steps, predictions_needed, require_steps, require_whole
from accelaes_export.policies.words import THRESHOLD, Scope, WordScoring

if TYPE_CHECKING:
    from accelaes_export.policies.base import Selector


@dataclass(frozen=True)
class AccelAes(BasePolicy):
    """The prompt's focus tokens alone are computed at sparse steps, nothing at skipped ones: AccelAes.

    AesMask (Eq. 3-7), SkipSparse (Eq. 8-10) and StepCache (Eq. 12-13) together.

    Attributes:
        skip_ratio: p, the share of tokens a SPARSE step leaves out; the bundle must have the bucket 1 - p.
        mask_step: the step after which the mask is built. It and all before it are DENSE.
        warmup: T_w, dense steps before the first skip. Orders 1 and 2 compute at least two, whatever it says.
        interval: Δ, one computed step in `interval` after that; 1 never skips.
        refresh_every: each n-th computed step after the mask is DENSE and renews the background; 0: none is.
        order: 0 holds a token's last prediction, 1 is linear (the paper's), 2 quadratic.
        clock: "step" or "sigma", what the extrapolation distance is counted in.
        spatial_cfg: region-wise guidance (Eq. 11), or None for the pipeline's own scale everywhere.
        threshold: smallest α of a word that counts.
        scope: "phrase": an aesthetic word's weight goes to its noun phrase; "word": to the word alone, as in the paper;
            "others": all words outside those phrases weigh 1; "all": all content words do.
        reach: furthest a token is extrapolated, in gaps between its last two computations; 0 holds, None: no limit.
        theta: θ, how far past each step the prediction fed to the scheduler is extrapolated, in steps.
        cache_reach: furthest the background's keys and values are extrapolated, in gaps; 0: taken as they are.
        calibrated: whether no more of a change is carried on than has come true so far in the run.

    Raises:
        InputError: for an option outside its range.
    """

    skip_ratio: float = 0.5
    mask_step: int = 5
    warmup: int = 5
    interval: int = 2
    refresh_every: int = 2
    order: int = 1
    clock: Literal["step", "sigma"] = "step"
    spatial_cfg: SpatialGuidance | None = None
    reach: float | None = 1.0
    threshold: float = THRESHOLD
    scope: Scope = "phrase"
    theta: float = 0.0
    cache_reach: float = 0.0
    calibrated: bool = False

    name: ClassVar[str] = "accelaes"

    def __post_init__(self) -> None:
        if not isinstance(self.skip_ratio, (int, float)) or not 0 < self.skip_ratio < 1:
            raise InputError(
                f"skip_ratio is {self.skip_ratio!r}; allowed are numbers above 0 and below 1: "
                "give the share of tokens to leave out, or take the policy stepcache to leave out none."
            )
        require_whole("mask_step", self.mask_step, at_least=0)
        require_whole("warmup", self.warmup, at_least=1)
        require_whole("interval", self.interval, at_least=1)
        require_whole("refresh_every", self.refresh_every, at_least=0)
        require_spatial_guidance(self.spatial_cfg)
        _ = self.extrapolation, self.word_scoring  # their own checks

    @property
    def extrapolation(self) -> Extrapolation:
        return Extrapolation(
            self.order,
            self.clock,
            self.reach,
            theta=self.theta,
            cache_reach=self.cache_reach,
            calibrated=self.calibrated,
        )

    @property
    def word_scoring(self) -> WordScoring:
        return WordScoring(self.threshold, self.scope)

    @property
    def spatial_guidance(self) -> SpatialGuidance | None:
        return self.spatial_cfg

    def plan(self, steps: int, buckets: Sequence[float], shares: Sequence[float] = ()) -> Plan:
        """T = 28 by default, buckets .25 and .5: ``DDDDDD.b.D.b.D.b.D.b.D.b.D.b``, cost 14.

        Raises:
            TooFewStepsError: for fewer than 2 steps, or a mask step the run doesn't reach.
            InputError: for a skip ratio without a bucket.
        """
        require_steps(steps)
        if self.mask_step >= steps:
            raise TooFewStepsError(
                f"mask_step is {self.mask_step}, but a run of {steps} steps ends with step {steps - 1}: "
                f"give a mask_step of at most {steps - 1}, or more steps."
            )
        # With a refresh at every computed step no step is sparse, and any bundle will do.
        sparse = "D" if self.refresh_every == 1 else bucket_letter(1 - self.skip_ratio, buckets)
        first_skip = max(self.mask_step + 1, self.warmup, predictions_needed(self.order))
        symbols = []
        since_mask = 0  # computed steps after the dense beginning
        for i, now in enumerate(computed_steps(steps, first_skip, self.interval)):
            if not now:
                symbols.append(".")
            elif i < first_skip:
                symbols.append("D")
            else:
                since_mask += 1
                refresh = self.refresh_every > 0 and since_mask % self.refresh_every == 0
                symbols.append("D" if refresh else sparse)
        return Plan("".join(symbols), tuple(buckets))

    def selector(self) -> Selector | None:
        from accelaes_export.policies.selection import OneShotMask  # loads torch, which a plan alone doesn't need

        return OneShotMask(self.mask_step, fraction=1 - self.skip_ratio)

    def affinity_steps(self, plan: Plan) -> frozenset[int]:
        """The mask step, where anything uses the mask: a SPARSE step of the plan, or spatial guidance."""
        used = self.spatial_cfg is not None or plan.count(StepKind.SPARSE) > 0
        return frozenset({self.mask_step}) if used else frozenset()
