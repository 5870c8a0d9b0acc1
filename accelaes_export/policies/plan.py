"""A plan: what kind of step every denoising step is. Data, one symbol a step, the same for every policy.

D        DENSE: all N tokens are computed
a b c …  SPARSE: the focus tokens of a bucket are computed (a is the bundle's smallest bucket)
0 1 2 …  PARTIAL: all tokens, but one of the bundle's block ranges is left out (0 is the first)
*        LAYERED: all tokens, of which every part of every block computes a share of its own
.        SKIP: nothing is computed, the prediction is extrapolated
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from accelaes_export.errors import InputError


class StepKind(enum.Enum):
    DENSE = "D"
    PARTIAL = "0"
    LAYERED = "*"
    SPARSE = "s"
    SKIP = "."

    @property
    def whole(self) -> bool:
        """Whether all tokens' predictions come from the network."""
        return self not in (StepKind.SPARSE, StepKind.SKIP)


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    Attributes:
        fraction: of a dense step's work: n/N, the bucket's for SPARSE; the share of blocks for PARTIAL; the parts' mean
            share for LAYERED; 0 for SKIP.
        left_out: which block range a PARTIAL step leaves out.
    """

    kind: StepKind
    fraction: float
    left_out: int | None = None

    @property
    def computed(self) -> bool:
        return self.kind is not StepKind.SKIP


@dataclass(frozen=True)
class Plan:
    """A denoising run's step kinds in sampling order.

    Attributes:
        symbols: one of ``D``, ``.``, a bucket letter or a block range's digit for each of the T steps.
        buckets: the fractions n/N < 1 that the letters a, b, c, … stand for, strictly ascending, at most 26.
        shares: of the blocks that a step without each block range computes, which the digits 0, 1, … stand for.
        rows: of a plan with LAYERED steps: the share of the tokens that each part computes, for every step.
    """

    symbols: str
    buckets: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    rows: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        ascending = all(low < high for low, high in zip((0.0, *self.buckets), (*self.buckets, 1.0), strict=True))
        if not ascending or len(self.buckets) > 26:
            raise InputError(
                f"A plan's buckets are {', '.join(f'{b:g}' for b in self.buckets)}; allowed are at most 26 fractions "
                "above 0 and below 1, strictly ascending (the dense bucket 1 has no letter)."
            )
        if not self.symbols:
            raise InputError("The plan is empty; give one symbol a step: D, '.' or a bucket letter.")
        if self.rows and len(self.rows) != len(self.symbols):
            raise InputError(
                f"The plan has {len(self.symbols)} steps, and {len(self.rows)} rows of shares: give each step one."
            )
        allowed = {"D", ".", *self.letters, *self.digits, *("*" if self.rows else "")}
        for i, symbol in enumerate(self.symbols):
            if symbol not in allowed:
                built = ", and it was built without block ranges" if symbol.isdecimal() and not self.shares else ""
                built = ", and * needs the shares of a schedule" if symbol == "*" else built
                raise InputError(
                    f"Step {i} of the plan is {symbol!r}; allowed are {', '.join(sorted(allowed))} "
                    f"(letters stand for the buckets {', '.join(f'{b:g}' for b in self.buckets) or 'none'}{built})."
                )
        if self.symbols[0] != "D":
            raise InputError(
                f"The plan starts with {self.symbols[0]!r}; its first step must be D, as nothing is cached yet."
            )

    @classmethod
    def drawn(
        cls, symbols: str, buckets: Sequence[float], shares: Sequence[float] = (), kept: Sequence[float] = ()
    ) -> Plan:
        """A plan to be looked at, of which only `kept` is known of its rows: the parts' mean share, for every step."""
        return cls(symbols, tuple(buckets), tuple(shares), tuple((share,) for share in kept))

    @property
    def kept(self) -> tuple[float, ...]:
        """The parts' mean share at every step of a plan with LAYERED steps; nothing of another."""
        return tuple(step.fraction for step in self) if self.rows else ()

    @property
    def letters(self) -> dict[str, float]:
        """Bucket letter to fraction."""
        return {chr(ord("a") + k): fraction for k, fraction in enumerate(self.buckets)}

    @property
    def digits(self) -> dict[str, float]:
        """Block range's digit to the share of the blocks that is computed without it."""
        return {str(k): share for k, share in enumerate(self.shares)}

    def on(self, buckets: Sequence[float]) -> Plan:
        """The same steps on a bundle with `buckets`; InputError where it lacks one that a step computes."""
        letters = {ord(old): bucket_letter(n, buckets) for old, n in self.letters.items() if old in self.symbols}
        return replace(self, symbols=self.symbols.translate(letters), buckets=tuple(buckets))

    def __len__(self) -> int:
        return len(self.symbols)

    def __getitem__(self, i: int) -> Step:
        symbol = self.symbols[i]
        if symbol == "D":
            return Step(StepKind.DENSE, 1.0)
        if symbol == ".":
            return Step(StepKind.SKIP, 0.0)
        if symbol.isdecimal():
            return Step(StepKind.PARTIAL, self.shares[int(symbol)], int(symbol))
        if symbol == "*":
            return Step(StepKind.LAYERED, math.fsum(self.rows[i]) / len(self.rows[i]))
        return Step(StepKind.SPARSE, self.letters[symbol])

    def __iter__(self) -> Iterator[Step]:
        return (self[i] for i in range(len(self)))

    def __str__(self) -> str:
        return self.symbols

    @property
    def cost(self) -> float:
        """Computed token-steps in units of one dense step: the sum of the steps' fractions."""
        return math.fsum(step.fraction for step in self)

    def count(self, kind: StepKind) -> int:
        return sum(step.kind is kind for step in self)


def bucket_letter(fraction: float, buckets: Sequence[float]) -> str:
    """The letter of the bucket n/N = `fraction`; InputError names the nearest where there is none."""
    for k, bucket in enumerate(buckets):
        if abs(bucket - fraction) < 1e-6:
            return chr(ord("a") + k)
    if not buckets:
        raise InputError(
            "This bundle has no bucket below 1.0, so sparse steps can't run; use --policy dense or stepcache."
        )
    nearest = min(buckets, key=lambda bucket: abs(bucket - fraction))
    raise InputError(
        f"Skip ratio {1 - fraction:g} needs the bucket {fraction:g}, which this bundle doesn't have "
        f"(buckets {', '.join(f'{b:g}' for b in buckets)}); the nearest skip ratio is {1 - nearest:g}, "
        f"or rebuild with --buckets {fraction:g}."
    )
