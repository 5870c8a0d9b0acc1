"""Δ-DiT: between full steps a range of blocks is left out; what it changed at the last full step is added instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from accelaes_export.errors import InputError
from accelaes_export.policies.base import BasePolicy, Extrapolation
from accelaes_export.policies.plan import Plan
from accelaes_export.policies.schedule import require_steps, require_whole


@dataclass(frozen=True)
class DeltaDiT(BasePolicy):
    """Every `interval`-th step is whole; the others reuse the last blocks' change early on, the first ones' later.

    The first blocks draw outlines and the last ones detail, and a run decides outlines first. Which blocks these are is
    what the bundle was built with: `--block-ranges FIRST:LAST,FIRST:LAST`, the first range and the last of it.

    Attributes:
        interval: N; 1 computes every step whole.
        boundary: b, the share of the steps that are early.

    Raises:
        InputError: for an option outside its range.
    """

    interval: int = 2
    boundary: float = 0.5

    name: ClassVar[str] = "delta-dit"

    def __post_init__(self) -> None:
        require_whole("interval", self.interval, at_least=1)
        if (
            isinstance(self.boundary, bool)
            or not isinstance(self.boundary, (int, float))
            or not 0 <= self.boundary <= 1
        ):
            raise InputError(
                f"boundary is {self.boundary!r}; allowed are numbers from 0 to 1: give a share of the steps."
            )

    @property
    def extrapolation(self) -> Extrapolation:
        return Extrapolation(order=0)  # every step is computed, so nothing is

    def plan(self, steps: int, buckets: Sequence[float] = (), shares: Sequence[float] = ()) -> Plan:
        """T = 28 by default, two ranges: ``D1D1D1D1D1D1D1D0D0D0D0D0D0D0``, with half of the blocks in each cost 21.

        Raises:
            InputError: for fewer than 2 steps, or a bundle without block ranges.
        """
        require_steps(steps)
        if not shares and self.interval > 1:
            raise InputError(
                "Policy delta-dit leaves out ranges of blocks, and this bundle was built without any: build it again "
                "with --block-ranges, such as 0:12,12:24 for a model of 24 blocks."
            )
        early, late = str(len(shares) - 1), "0"
        symbols = (
            "D" if i % self.interval == 0 else early if i < self.boundary * steps else late for i in range(steps)
        )
        return Plan("".join(symbols), tuple(buckets), tuple(shares))
