"""The cases of benchmarks/policies.py: policies, their options and numbers of steps, at costs from 6 to 28."""

from __future__ import annotations

from dataclasses import dataclass, replace

from accelaes_export.policies import (
    RAS,
    AccelAes,
    DeltaDiT,
    Dense,
    Drift,
    FewerSteps,
    Fora,
    Policy,
    PolicyWithPlan,
    StepCache,
    TaylorSeer,
    TeaCache,
)
from benchmarks.shapes_quality import RandomFocus

BUCKETS = (0.25, 0.5, 0.75)  # the recipe's
BLOCKS = 6  # L of the shipped checkpoint
HALVES = ((0, 3), (3, 6))
ALL_BUT_ONE = ((0, 5), (1, 6))
FINE_BUCKETS = (0.3, 0.4, 0.5, 0.6, 0.7)  # skip ratios .3 to .7; without .5 a bundle's default policy has no bucket


@dataclass(frozen=True)
class PolicyCase:
    """A policy for a number of steps, on the bundle with these buckets, block ranges and layer-wise step.

    Groups: "curves" (what k is read from), "policies" and "ablations".
    """

    policy: Policy
    steps: int = 28
    group: str = "policies"
    buckets: tuple[float, ...] = BUCKETS
    ranges: tuple[tuple[int, int], ...] = ()
    layerwise: str = "none"

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the blocks that a step without each range computes."""
        return tuple(1 - (last - first) / BLOCKS for first, last in self.ranges)


THETA = 0.3  # of dense steps and others that are compared with drift
BUDGETS = (6, 7, 8, 9, 10, 11, 12, 13, 14, 16)  # 7, 9, 11 and 13 get plans by the rule
EXACT = PolicyCase(Dense(), 160, "curves")
DENSE = PolicyCase(Dense(), 28, "curves")
PLAN_ACCELAES = str(AccelAes().plan(28, BUCKETS))
PLAN_12 = str(Drift(budget=12).plan(Drift(budget=12).own_steps or 28, (0.5,))).replace("a", "b")


def _curves(theta: float) -> dict[str, PolicyCase]:
    """Dense steps by number, plain or with θ."""
    if theta:
        numbers = (6, 8, 10, 12, 14, 17, 20, 24, 28)
        return {f"dense with θ, {T} steps": PolicyCase(Dense(theta=theta), T, "curves") for T in numbers}
    numbers = (*range(6, 28, 2), 32, 36)
    plain = {f"dense, {T} steps": PolicyCase(FewerSteps(budget=T), T, "curves") for T in numbers}
    return plain | {"dense, 28 steps": DENSE}


def _policies() -> dict[str, PolicyCase]:
    cases = {
        f"drift, budget {budget}": PolicyCase(Drift(budget=budget), Drift(budget=budget).own_steps or 28)
        for budget in BUDGETS
    }
    cases |= {
        "accelaes, p = .5": PolicyCase(AccelAes()),
        "accelaes, p = .75": PolicyCase(AccelAes(skip_ratio=0.75)),
        "accelaes, p = .75, 20 steps": PolicyCase(AccelAes(skip_ratio=0.75, mask_step=3, warmup=4), 20),
        "accelaes, p = .75, 12 steps": PolicyCase(AccelAes(skip_ratio=0.75, mask_step=2, warmup=3), 12),
        "ras, ratio .5": PolicyCase(RAS()),
        "ras, ratio .25": PolicyCase(RAS(ratio=0.25)),
        "ras, ratio .25, norm": PolicyCase(RAS(ratio=0.25, metric="norm")),
        "ras, ratio .5, norm, 20 steps": PolicyCase(RAS(metric="norm"), 20),
        "ras, ratio .5, norm, 14 steps": PolicyCase(RAS(metric="norm"), 14),
        "ras, ratio .5, norm, interval 2": PolicyCase(RAS(metric="norm", interval=2, order=1)),
        "stepcache": PolicyCase(StepCache()),
        "stepcache, 26 steps": PolicyCase(StepCache(warmup=4), 26),
        "stepcache, 22 steps": PolicyCase(StepCache(warmup=4), 22),
        "stepcache, 20 steps": PolicyCase(StepCache(warmup=3), 20),
        "stepcache, 16 steps": PolicyCase(StepCache(warmup=3), 16),
        "stepcache, 12 steps": PolicyCase(StepCache(warmup=3), 12),
        "stepcache, interval 3": PolicyCase(StepCache(interval=3)),
        "fora, every 2nd": PolicyCase(Fora(interval=2)),
        "fora, every 3rd": PolicyCase(Fora(interval=3)),
        "fora, every 4th": PolicyCase(Fora(interval=4)),
        "taylorseer, every 2nd, order 1": PolicyCase(TaylorSeer(interval=2)),
        "taylorseer, every 3rd, order 1": PolicyCase(TaylorSeer(interval=3)),
        "taylorseer, every 4th, order 1": PolicyCase(TaylorSeer(interval=4)),
        "taylorseer, every 2nd, order 2": PolicyCase(TaylorSeer(interval=2, order=2)),
        "taylorseer, every 3rd, order 2": PolicyCase(TaylorSeer(interval=3, order=2)),
    }
    cases |= {
        f"delta-dit, {kept} of 6 blocks, every {nth}": PolicyCase(DeltaDiT(interval=int(nth[0])), ranges=ranges)
        for kept, ranges, intervals in ((3, HALVES, ("2nd", "4th")), (1, ALL_BUT_ONE, ("2nd", "3rd", "4th")))
        for nth in intervals
    }
    cases |= {f"teacache, threshold {t:g}": PolicyCase(TeaCache(threshold=t)) for t in (0.1, 0.15, 0.2)}
    return cases


def _ablations() -> dict[str, PolicyCase]:
    drift = Drift(budget=12)
    T = drift.own_steps or 28
    cases = {
        "drift, without extrapolated caches": PolicyCase(replace(drift, cache_reach=0.0), T),
        "drift, not calibrated": PolicyCase(replace(drift, calibrated=False), T),
        "drift, budget 8, not calibrated": PolicyCase(
            Drift(budget=8, calibrated=False), Drift(budget=8).own_steps or 28
        ),
        "drift, θ = 0": PolicyCase(replace(drift, theta=0.0), T),
        "drift, stale tokens extrapolated": PolicyCase(replace(drift, stale_reach=None), T),
        "drift, weighted by the mask": PolicyCase(replace(drift, mask_weight=0.5), T),
        "drift's plan, AesMask's tokens": PolicyCase(PolicyWithPlan(AccelAes(mask_step=1, theta=THETA), PLAN_12), T),
        "drift's plan, RAS's tokens by norm": PolicyCase(
            PolicyWithPlan(RAS(metric="norm", order=1, theta=THETA, cache_reach=1.0, reach=None), PLAN_12), T
        ),
        "accelaes, random mask": PolicyCase(RandomFocus()),
        "accelaes, the word alone": PolicyCase(AccelAes(scope="word")),
        "accelaes, all words alike": PolicyCase(AccelAes(scope="all")),
        "accelaes, the other words": PolicyCase(AccelAes(scope="others")),
        "accelaes, space only": PolicyCase(AccelAes(interval=1)),
        "accelaes, never refreshed": PolicyCase(AccelAes(refresh_every=0)),
        "accelaes, p = .25": PolicyCase(AccelAes(skip_ratio=0.25)),
        "accelaes, extrapolated caches": PolicyCase(AccelAes(cache_reach=1.0)),
        "accelaes, θ": PolicyCase(AccelAes(theta=THETA)),
        "dense, 14 steps, the last held": PolicyCase(PolicyWithPlan(StepCache(order=0), "D" * 13 + "."), 14),
        "stepcache, last step extrapolated": PolicyCase(
            PolicyWithPlan(StepCache(), "DDDDD.D.D.D.D.D.D.D.D.D.D.D."), 28
        ),
        "stepcache, order 0": PolicyCase(StepCache(order=0)),
        "stepcache, order 2": PolicyCase(StepCache(order=2)),
        "stepcache, in σ": PolicyCase(StepCache(clock="sigma")),
        "stepcache, θ": PolicyCase(StepCache(theta=THETA)),
        "stepcache, calibrated": PolicyCase(StepCache(calibrated=True)),
        "stepcache, 20 steps, calibrated": PolicyCase(StepCache(warmup=3, calibrated=True), 20),
        "accelaes, p = .75, calibrated": PolicyCase(AccelAes(skip_ratio=0.75, calibrated=True)),
        "ras, no starvation control": PolicyCase(RAS(starvation=0.0)),
        "ras, no resets": PolicyCase(RAS(resets=())),
        "ras, neither": PolicyCase(RAS(starvation=0.0, resets=())),
        "ras, ramped": PolicyCase(RAS(ramp=True)),
        "ras, with AesMask": PolicyCase(RAS(mask_share=0.25)),
    }
    cases |= {
        f"accelaes, p = {p:g}".replace("0.", "."): PolicyCase(AccelAes(skip_ratio=p), buckets=FINE_BUCKETS)
        for p in (0.3, 0.4, 0.6, 0.7)
    }
    cases |= {f"accelaes, mask step {i}": PolicyCase(AccelAes(mask_step=i)) for i in (3, 7, 8, 10, 11, 15)}
    # The same with the default plan's end, so that nothing but the mask and the steps before it differ.
    cases |= {
        f"accelaes, mask step {i}, the same end": PolicyCase(
            PolicyWithPlan(AccelAes(mask_step=i), "D" * (i + 1) + PLAN_ACCELAES[i + 1 :])
        )
        for i in (1, 3, 8, 11, 15)
    }
    return {label: replace(case, group="ablations") for label, case in cases.items()}


CASES = {**_curves(0.0), **_curves(THETA), **_policies(), **_ablations()}
CURVE = list(_curves(0.0))
CURVE_THETA = list(_curves(THETA))
# What is timed. The first is what the others are compared with.
TIMED = (
    "dense, 28 steps",
    "dense, 14 steps",
    *(f"drift, budget {budget}" for budget in (8, 10, 12, 14)),
    "accelaes, p = .5",
    "accelaes, p = .75",
    "stepcache",
    "teacache, threshold 0.15",
    "taylorseer, every 2nd, order 1",
    "ras, ratio .5",
    "delta-dit, 1 of 6 blocks, every 2nd",
)
