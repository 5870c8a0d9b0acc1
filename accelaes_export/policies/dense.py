"""Dense: every token at every step, the baseline the others are measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accelaes_export.policies.base import Extrapolation, SpatialGuidance
from accelaes_export.policies.plan import Plan
from accelaes_export.policies.schedule import require_steps
from accelaes_export.policies.words import WordScoring

if TYPE_CHECKING:
    from accelaes_export.policies.base import Selector


@dataclass(frozen=True)
class Dense:
    """All N tokens are computed at every step; cost T."""

    name: ClassVar[str] = "dense"

    @property
    def extrapolation(self) -> Extrapolation:
        """Never used: no token goes uncomputed. Order 0, so that no second prediction is kept."""
        return Extrapolation(order=0)

    @property
    def spatial_guidance(self) -> SpatialGuidance | None:
        return None

    @property
    def word_scoring(self) -> WordScoring:
        return WordScoring()  # no mask, so nobody asks

    def plan(self, steps: int, buckets: Sequence[float] = ()) -> Plan:
        """``D`` for each of the T steps; InputError for fewer than 2 steps."""
        require_steps(steps)
        return Plan("D" * steps, tuple(buckets))

    def selector(self) -> Selector | None:
        return None

    def affinity_steps(self, plan: Plan) -> frozenset[int]:
        return frozenset()
