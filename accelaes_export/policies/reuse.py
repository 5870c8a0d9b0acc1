"""Policies from other papers that reuse what was computed at fixed steps: FORA and TaylorSeer.

Both papers cache every layer's output. Where all layers are reused together, what comes out is the model's last
prediction, or its Taylor series (up to the modulation of the last layer), so here the prediction itself is reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from accelaes_export.errors import InputError
from accelaes_export.policies.base import BasePolicy, Extrapolation
from accelaes_export.policies.plan import Plan
from accelaes_export.policies.schedule import require_steps, require_whole


@dataclass(frozen=True)
class Fora(BasePolicy):
    """FORA: every `interval`-th step is computed, from the first on, and reused until the next.

    Attributes:
        interval: N; 1 computes every step.
    """

    interval: int = 2

    name: ClassVar[str] = "fora"

    def __post_init__(self) -> None:
        require_whole("interval", self.interval, at_least=1)

    @property
    def extrapolation(self) -> Extrapolation:
        return Extrapolation(order=0)

    def plan(self, steps: int, buckets: Sequence[float] = (), shares: Sequence[float] = ()) -> Plan:
        """T = 28 by default: ``D.D.D.D.D.D.D.D.D.D.D.D.D.D.``, cost 14. InputError for fewer than 2 steps."""
        require_steps(steps)
        return Plan("".join("." if i % self.interval else "D" for i in range(steps)), tuple(buckets))


@dataclass(frozen=True)
class TaylorSeer(BasePolicy):
    """TaylorSeer: between computed steps predictions follow their Taylor series in backward differences.

    Attributes:
        interval: N, one computed step in so many after the warm-up.
        order: 1 or 2, the series' highest derivative.
        warmup: dense steps before that; their number also says where the computed ones lie.
    """

    interval: int = 3
    order: int = 1
    warmup: int = 3

    name: ClassVar[str] = "taylorseer"

    def __post_init__(self) -> None:
        require_whole("interval", self.interval, at_least=1)
        require_whole("warmup", self.warmup, at_least=1)
        if isinstance(self.order, bool) or self.order not in (1, 2):
            raise InputError(f"order is {self.order!r}; taylorseer has orders 1 and 2: give one of them, or take fora.")

    @property
    def extrapolation(self) -> Extrapolation:
        series: Literal["newton", "taylor"] = "taylor"
        return Extrapolation(order=self.order, series=series)

    def plan(self, steps: int, buckets: Sequence[float] = (), shares: Sequence[float] = ()) -> Plan:
        """T = 28 by default: ``DDD..D..D..D..D..D..D..D..D.``, cost 11. InputError for fewer than 2 steps."""
        require_steps(steps)
        since = [(i - self.warmup + 1) % self.interval for i in range(steps)]
        return Plan("".join("D" if i < self.warmup or not since[i] else "." for i in range(steps)), tuple(buckets))
