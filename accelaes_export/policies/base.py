"""What the denoiser needs to know of a policy. The loop reads these parts and never a policy's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from accelaes_export.errors import InputError
from accelaes_export.policies.plan import Plan
from accelaes_export.policies.words import WordScoring

if TYPE_CHECKING:
    import torch

ORDERS = (0, 1, 2)
CLOCKS = ("step", "sigma")


@dataclass(frozen=True)
class Extrapolation:
    """How a token that isn't computed now is predicted from its own last computed predictions (Eq. 12-13).

    Attributes:
        order: 0 holds the last, 1 is linear through the last two, 2 quadratic through the last three.
        clock: what k/gap is counted in: "step" (the papers') or "sigma".
        reach: furthest a token's prediction is extrapolated, in gaps between its last two; None: no limit.

    Raises:
        InputError: for an order, clock or reach that isn't allowed.
    """

    order: int = 1
    clock: Literal["step", "sigma"] = "step"
    reach: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.order, bool) or self.order not in ORDERS:
            raise InputError(
                f"order is {self.order!r}; allowed are 0 (hold), 1 (linear) and 2 (quadratic): give one of them."
            )
        if self.clock not in CLOCKS:
            raise InputError(f"clock is {self.clock!r}; allowed are 'step' and 'sigma': give one of them.")
        if self.reach is not None and not (_is_number(self.reach) and self.reach >= 0):
            raise InputError(f"reach is {self.reach!r}; give a number of gaps of at least 0, or None for no limit.")


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
        scales = _is_number(self.focus) and _is_number(self.background)
        if not (scales and float("inf") > self.focus >= self.background >= 1):
            raise InputError(
                f"Spatial guidance is {self.focus!r} on focus and {self.background!r} on background tokens; "
                "allowed is focus >= background >= 1: raise the focus scale or lower the background's."
            )
        if not (_is_number(self.softness) and float("inf") > self.softness >= 0):
            raise InputError(f"Spatial guidance's softness is {self.softness!r}; give a width in tokens of at least 0.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Selector(Protocol):
    """Which tokens a SPARSE step computes. `observe` is called after every computed step."""

    @property
    def moving(self) -> bool:
        """Whether focus sets of one size differ between steps, so that fresh keys and values must be written back."""

    def observe(self, i: int, affinity: torch.Tensor) -> None:
        """After computed step i: `affinity` [b, N], one row an image, conditional half only (dense steps)."""

    def select(self, i: int, n: int) -> torch.Tensor:
        """The focus index [b, n] int64, ascending, for SPARSE step i."""

    def mask(self) -> torch.Tensor | None:
        """The affinity [b, N] the one-shot mask was built from, or None before it exists."""

    def region(self) -> torch.Tensor | None:
        """M [b, N] fp32 of Eq. 7 (1 on focus tokens, 0 elsewhere) for spatial guidance, or None before it exists."""


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

    def plan(self, steps: int, buckets: Sequence[float]) -> Plan:
        """The plan for T = `steps` and the bundle's buckets below 1; InputError where the options can't make one."""

    def selector(self) -> Selector | None:
        """A fresh selector for one run, or None where no step is SPARSE."""

    def affinity_steps(self, plan: Plan) -> frozenset[int]:
        """The steps whose affinity the selector wants to observe."""
