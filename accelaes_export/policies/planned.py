"""Plans from elsewhere: any policy's selector, extrapolation and guidance with another plan than its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from accelaes_export.errors import InputError
from accelaes_export.policies.base import Extrapolation, Policy, SpatialGuidance
from accelaes_export.policies.coefficients import Coefficients
from accelaes_export.policies.plan import Plan, StepKind
from accelaes_export.policies.words import WordScoring

if TYPE_CHECKING:
    from accelaes_export.policies.base import Gate, Selector


@dataclass(frozen=True)
class _Changed:
    """Another policy in all that a subclass doesn't say otherwise."""

    policy: Policy

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def extrapolation(self) -> Extrapolation:
        return self.policy.extrapolation

    @property
    def spatial_guidance(self) -> SpatialGuidance | None:
        return self.policy.spatial_guidance

    @property
    def word_scoring(self) -> WordScoring:
        return self.policy.word_scoring

    @property
    def own_steps(self) -> int | None:
        return self.policy.own_steps

    @property
    def keeps_steps(self) -> bool:
        return self.policy.keeps_steps

    def plan(self, steps: int, buckets: Sequence[float], shares: Sequence[float] = ()) -> Plan:
        return self.policy.plan(steps, buckets, shares)

    def selector(self) -> Selector | None:
        return self.policy.selector()

    def affinity_steps(self, plan: Plan) -> frozenset[int]:
        return self.policy.affinity_steps(plan)

    def gate(self) -> Gate | None:
        return self.policy.gate()

    def without_mask(self) -> Policy:
        return self.policy.without_mask()


@dataclass(frozen=True)
class PolicyWithPlan(_Changed):
    """A policy with the plan `symbols` in place of its own.

    Attributes:
        policy: supplies everything else.
        symbols: one of ``D``, ``.`` or a bucket letter a step, e.g. ``DDDD.b.D.b..D.b``.
    """

    symbols: str

    @property
    def own_steps(self) -> int | None:
        """As many as the plan has symbols."""
        return len(self.symbols)

    @property
    def keeps_steps(self) -> bool:
        return True

    def plan(self, steps: int, buckets: Sequence[float], shares: Sequence[float] = ()) -> Plan:
        """The given plan.

        Raises:
            InputError: for symbols that aren't allowed, another number of steps, or what the policy can't carry out.
        """
        plan = Plan(self.symbols, tuple(buckets), tuple(shares))
        if len(plan) != steps:
            raise InputError(
                f"The plan given has {len(plan)} steps, but the run has {steps}: ask for {len(plan)} steps, or give a "
                "plan with one symbol for every step."
            )
        require_runnable(self.policy, plan)
        return plan

    def without_mask(self) -> Policy:
        bare = self.policy.without_mask()
        return PolicyWithoutMask(self) if bare.selector() is None else replace(self, policy=bare)


@dataclass(frozen=True)
class PolicyWithCoefficients(PolicyWithPlan):
    """A policy with a plan and learned coefficients in place of how it extrapolates.

    Attributes:
        coefficients: of the plan's steps.

    Raises:
        InputError: for coefficients of another number of steps, or a policy whose own plan isn't the last word.
    """

    coefficients: Coefficients

    def __post_init__(self) -> None:
        self.coefficients.require_for(self.symbols)
        if self.policy.gate() is not None:
            raise InputError(
                f"Policy {self.policy.name} decides during the run which steps are computed, and coefficients are "
                "fitted to one plan; give another policy, or no coefficients."
            )

    @property
    def extrapolation(self) -> Extrapolation:
        own = self.policy.extrapolation
        return Extrapolation(order=2, cache_reach=own.cache_reach, coefficients=self.coefficients)

    def without_mask(self) -> Policy:
        bare = self.policy.without_mask()
        if bare.selector() is None:  # its plan is another one then
            return PolicyWithPlan(self.policy, self.symbols).without_mask()
        return replace(self, policy=bare)


@dataclass(frozen=True)
class PolicyWithDefaultPlan(PolicyWithPlan):
    """The same for a plan that nobody insists on: a run of another number of steps gets the policy's own."""

    @property
    def keeps_steps(self) -> bool:
        return False

    def plan(self, steps: int, buckets: Sequence[float], shares: Sequence[float] = ()) -> Plan:
        """The plan for T = `steps`; InputError for what the policy can't carry out."""
        own = steps != len(self.symbols)
        return self.policy.plan(steps, buckets, shares) if own else super().plan(steps, buckets, shares)


@dataclass(frozen=True)
class PolicyWithoutMask(_Changed):
    """A policy that lost its mask: what it would compute of some tokens is computed of all, and no region is guided.

    Attributes:
        policy: supplies everything else.
    """

    @property
    def spatial_guidance(self) -> SpatialGuidance | None:
        return None

    def plan(self, steps: int, buckets: Sequence[float], shares: Sequence[float] = ()) -> Plan:
        """The policy's, with D in place of its letters."""
        plan = self.policy.plan(steps, buckets, shares)
        return replace(plan, symbols="".join("D" if symbol in plan.letters else symbol for symbol in plan.symbols))

    def selector(self) -> Selector | None:
        return None

    def affinity_steps(self, plan: Plan) -> frozenset[int]:
        return frozenset()

    def without_mask(self) -> Policy:
        return self


def relies_on_the_solver(policy: Policy, plan: Plan) -> bool:
    """Whether predictions are carried over from one step to another, which holds where the scheduler adds no noise."""
    whole = all(step.kind is StepKind.DENSE for step in plan)
    return not whole or policy.extrapolation.leads or policy.gate() is not None


def require_runnable(policy: Policy, plan: Plan) -> None:
    """InputError where `plan` has sparse steps and `policy` no tokens for them, or no mask in time."""
    sparse = next((i for i, step in enumerate(plan) if step.kind is StepKind.SPARSE), None)
    if sparse is not None and policy.selector() is None:
        raise InputError(
            f"Step {sparse} of the plan is {plan.symbols[sparse]!r}, but policy {policy.name} chooses no focus tokens: "
            "give D and '.' alone, or take accelaes, ras or drift."
        )
    for i in sorted(policy.affinity_steps(plan)):
        if i >= len(plan) or plan[i].kind is not StepKind.DENSE or (sparse is not None and sparse < i):
            raise InputError(
                f"Policy {policy.name} builds its mask after step {i}, which must be D and come before the first "
                f"sparse step, and the plan is {plan}: give another plan or another mask_step."
            )
