"""What the denoiser needs to know of a policy. The loop reads these parts and never a policy's name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from accelaes_export.checks import is_number
from accelaes_export.errors import InputError
from accelaes_export.policies.coefficients import Coefficients
from accelaes_export.policies.plan import Plan
from accelaes_export.policies.words import WordScoring

if TYPE_CHECKING:
    import torch

    from accelaes_export.policies.drift_plans import DriftSchedule
    from accelaes_export.policies.estimates import Estimates
    from accelaes_export.policies.gating import GateState
    from accelaes_export.policies.history_state import Clock

ORDERS = (0, 1, 2)
CLOCKS = ("step", "sigma")
SERIES = ("newton", "taylor")


@dataclass(frozen=True)
class Extrapolation:
    """How a token that isn't computed now is predicted from its own last computed predictions (Eq. 12-13).

    Attributes:
        order: 0 holds the last, 1 is linear through the last two, 2 quadratic through the last three.
        clock: what k/gap is counted in: "step" (the papers') or "sigma".
        reach: furthest a token's prediction is extrapolated, in gaps between its last two; None: no limit.
        stale_reach: the same for tokens that the latest computed step left out; 0 holds them. None: as the others.
        theta: θ, the scheduler is fed the prediction extrapolated to step i + θ, at computed steps too. With linear
            predictions 1/2 is the second-order Adams-Bashforth method. Solvers of a higher order do this themselves:
            the runtime then takes 0.
        cache_reach: the background's cached tensors are extrapolated like predictions, linearly from a token's last two
            and at most so many gaps; 0 takes them as they are. Keeps two of everything cached.
        trend: how much of a prediction's change is carried on, 1 all of it and 0 none: its distances are multiplied by
            it. Below 1 it keeps coarse schedules from swinging.
        calibrated: in each row no more of a change is carried on than has come true so far in the run: distances are
            multiplied by the least-squares coefficient, 0 to 1, between what the linear form foresaw at computed
            steps and what came; 0 until there is something to compare.
        series: order 2 is "newton", the parabola through the last three, or "taylor", with backward differences for
            derivatives (TaylorSeer).
        coefficients: learned weights of a token's last three predictions, in place of all of the above but
            `cache_reach`; for one plan, with order 2, the clock "step" and θ 0.

    Raises:
        InputError: for an order, clock, reach, θ or series that isn't allowed.
    """

    order: int = 1
    clock: Literal["step", "sigma"] = "step"
    reach: float | None = None
    stale_reach: float | None = None
    theta: float = 0.0
    cache_reach: float = 0.0
    trend: float = 1.0
    calibrated: bool = False
    series: Literal["newton", "taylor"] = "newton"
    coefficients: Coefficients | None = None

    def __post_init__(self) -> None:
        if isinstance(self.order, bool) or self.order not in ORDERS:
            raise InputError(
                f"order is {self.order!r}; allowed are 0 (hold), 1 (linear) and 2 (quadratic): give one of them."
            )
        if self.clock not in CLOCKS:
            raise InputError(f"clock is {self.clock!r}; allowed are 'step' and 'sigma': give one of them.")
        for name in ("reach", "stale_reach"):
            reach = getattr(self, name)
            if reach is not None and not (is_number(reach) and reach >= 0):
                raise InputError(f"{name} is {reach!r}; give a number of gaps of at least 0, or None for no limit.")
        if not (is_number(self.cache_reach) and 0 <= self.cache_reach < float("inf")):
            raise InputError(f"cache_reach is {self.cache_reach!r}; give a number of gaps of at least 0.")
        if not (is_number(self.trend) and 0 <= self.trend <= 1):
            raise InputError(f"trend is {self.trend!r}; allowed are numbers from 0 (hold) to 1 (all of the change).")
        if not (is_number(self.theta) and 0 <= self.theta <= 1):
            raise InputError(
                f"theta is {self.theta!r}; allowed are numbers from 0 (none) to 1: give a share of a step."
            )
        if self.theta and not self.order:
            raise InputError(f"theta is {self.theta!r}, but order 0 extrapolates nothing; give order 1, or theta 0.")
        if not isinstance(self.calibrated, bool):
            raise InputError(f"calibrated is {self.calibrated!r}; give true or false.")
        if self.series not in SERIES:
            raise InputError(f"series is {self.series!r}; allowed are 'newton' and 'taylor': give one of them.")
        if self.coefficients is not None and (self.order, self.clock, self.theta) != (2, "step", 0):
            raise InputError(
                "Learned coefficients weigh three predictions by steps; give order 2, clock step, theta 0."
            )

    @property
    def leads(self) -> bool:
        """Whether the scheduler is fed something else than what a step computed, even where all tokens were."""
        return self.theta > 0 or self.coefficients is not None


@dataclass(frozen=True)
class SpatialGuidance:
    """Region-wise classifier-free guidance (Eq. 11) from the step after the mask.

    Attributes:
        focus: g_aes, the scale where M = 1.
        background: g_bg, the scale elsewhere.
        softness: standard deviation, in tokens, of the Gaussian that softens M for guidance; 0 keeps its hard edge.

    Raises:
        InputError: unless focus >= background >= 1 and softness >= 0.
    """

    focus: float
    background: float
    softness: float = 0.0

    def __post_init__(self) -> None:
        scales = is_number(self.focus) and is_number(self.background)
        if not (scales and float("inf") > self.focus >= self.background >= 1):
            raise InputError(
                f"Spatial guidance is {self.focus!r} on focus and {self.background!r} on background tokens; "
                "allowed is focus >= background >= 1: raise the focus scale or lower the background's."
            )
        if not (is_number(self.softness) and float("inf") > self.softness >= 0):
            raise InputError(f"Spatial guidance's softness is {self.softness!r}; give a width in tokens of at least 0.")


def require_spatial_guidance(value: object) -> None:
    """InputError unless `value` is SpatialGuidance or None."""
    if value is not None and not isinstance(value, SpatialGuidance):
        raise InputError(f"spatial_cfg is {value!r}; give SpatialGuidance(focus, background) or None.")


class Selector(Protocol):
    """Which tokens a SPARSE step computes: those of the largest score. Holds no state (`selection.FocusSets` does)."""

    @property
    def moving(self) -> bool:
        """Whether focus sets of one size differ between steps, so that fresh keys and values must be written back."""

    @property
    def mask_step(self) -> int | None:
        """The step whose affinity is observed, or None where it plays no part."""

    @property
    def fraction(self) -> float:
        """n/N of the mask, the tokens with the largest affinity, which spatial guidance uses."""

    def score(self, estimates: Estimates, affinity: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
        """[b, N] fp32: the n largest are focus tokens. A fixed sequence of operations, without a sort or scatter.

        Args:
            estimates: what the conditional rows' history knows of every token.
            affinity: [b, N] of the mask step, one row an image, conditional half only; None without a mask step.
            mask: M [b, N] fp32 of Eq. 7, 1 on the tokens with the largest affinity; None without a mask step.
        """


class Gate(Protocol):
    """Decides during a run whether a step the plan computes is computed: for policies that depend on the data.

    What it remembers is a state of tensors by name, and its methods are functions of it that change nothing they are
    given and wait for nothing: a runtime reads the answer, and hands the state on (`gating.Decisions`).
    """

    @property
    def observes(self) -> bool:
        """Whether predictions play a part."""

    def nothing_seen(self, latents: torch.Tensor, prediction: torch.Tensor) -> GateState:
        """The state before the first step, of latents and predictions like these [B, ...] fp32: all zeros."""

    def decide(self, state: GateState, latents: torch.Tensor, i: Clock) -> tuple[GateState, torch.Tensor]:
        """The state after step i was decided on, and whether it is computed, a bool [], by all images' latents."""

    def observe(self, state: GateState, prediction: torch.Tensor) -> GateState:
        """The state after that step was computed: what was predicted, [B, ...] fp32."""


@dataclass(frozen=True)
class ModelFacts:
    """What a policy may be suited to: facts of one model, or of one bundle.

    Attributes:
        steps: T of the model's own runs.
        buckets: its fractions n/N below 1, ascending.
        plans: drift's by step budget, which the model brings.
    """

    steps: int
    buckets: tuple[float, ...]
    plans: Mapping[float, DriftSchedule]


class Policy(Protocol):
    """A policy = plan + selector + extrapolation + guidance. Frozen, holds no per-image state."""

    @property
    def name(self) -> str:
        """What `policies.named` calls it."""

    @property
    def extrapolation(self) -> Extrapolation:
        """How a token not computed now is predicted."""

    @property
    def spatial_guidance(self) -> SpatialGuidance | None:
        """Region-wise guidance, or None where the pipeline's own scale holds everywhere."""

    @property
    def word_scoring(self) -> WordScoring:
        """Which words of the prompt drive the mask."""

    @property
    def own_steps(self) -> int | None:
        """The T this policy was made for, where nobody asks for another; None: any."""

    @property
    def keeps_steps(self) -> bool:
        """Whether there is no other T for it: its length is what was asked for."""

    def plan(self, steps: int, buckets: Sequence[float], shares: Sequence[float] = ()) -> Plan:
        """The plan for T = `steps`; InputError where the options can't make one.

        Args:
            buckets: the bundle's fractions n/N below 1, ascending.
            shares: of the blocks that a step without each of the bundle's block ranges computes.
        """

    def selector(self) -> Selector | None:
        """What says which tokens are computed, or None where no step is SPARSE."""

    def affinity_steps(self, plan: Plan) -> frozenset[int]:
        """The steps whose affinity the selector wants to observe."""

    def gate(self) -> Gate | None:
        """What decides during a run, or None where the plan alone does."""

    def without_mask(self) -> Policy:
        """What runs where no word is known to build the mask from."""


class BasePolicy:
    """What a policy is where it says nothing else: no focus tokens, words or regions, any number of steps, no gate.

    Every policy is a frozen dataclass below this one. Its fields are its options. The first line of its docstring is
    what `run --help` says it does, and `Attributes` there is what each option means.
    """

    @classmethod
    def check_on(cls, options: Mapping[str, Any], model: ModelFacts) -> None:
        """InputError for options that can't be on this model, before the policy is made."""

    def suited_to(self, model: ModelFacts) -> Policy:
        """The policy with what the model knows better in place of options that weren't given."""
        return cast("Policy", self)

    def default_symbols(self, model: ModelFacts) -> str | None:
        """The plan that the model brings for runs of as many steps, or None for the policy's own."""
        return None

    def learned(self, model: ModelFacts, given: Collection[str]) -> Coefficients | None:
        """What the model brings for that plan, unless the options that were `given` say how to extrapolate."""
        return None

    @property
    def spatial_guidance(self) -> SpatialGuidance | None:
        return None

    @property
    def word_scoring(self) -> WordScoring:
        return WordScoring()  # no mask, so nobody asks

    @property
    def own_steps(self) -> int | None:
        return None

    @property
    def keeps_steps(self) -> bool:
        return False

    def selector(self) -> Selector | None:
        return None

    def affinity_steps(self, plan: Plan) -> frozenset[int]:
        return frozenset()

    def gate(self) -> Gate | None:
        return None

    def without_mask(self) -> Policy:
        from accelaes_export.policies.planned import PolicyWithoutMask

        return PolicyWithoutMask(cast("Policy", self))
