"""How far tensors are from those they should be, and how far they may be by their dtype."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Largest error allowed, relative to the largest value of each output. fp32: reordered sums; halves: about ten
# roundings of 2**-11 (fp16) and 2**-8 (bf16) that add up over the blocks.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
# The same of the norm of the difference over the output's: roundings of single values even out.
NORM_TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 8e-2}


@dataclass(frozen=True)
class Difference:
    """Of several tensors the farthest: the largest difference, that over the largest value, and norm over norm."""

    max_abs: float
    max_rel: float
    norm_rel: float

    def within(self, dtype: str) -> bool:
        """Whether it may be so in an engine of this dtype."""
        return self.max_rel <= TOLERANCES[dtype] and self.norm_rel <= NORM_TOLERANCES[dtype]


def difference(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> Difference:
    """Of all tensors in `expected`, from those of the same names in `found`. What is no number is infinitely far."""
    max_abs = max_rel = norm_rel = 0.0
    for name, wanted in expected.items():
        wanted = wanted.float()
        apart = found[name].float() - wanted
        if not apart.numel():  # the background at n = N
            continue
        error, norm = apart.abs().max().item(), apart.norm().item()
        # What is no number would vanish in max(); as infinity it fails, on either side.
        error, norm = (value if math.isfinite(value) else math.inf for value in (error, norm))
        max_abs = max(max_abs, error)
        max_rel = max(max_rel, _over(error, wanted.abs().max().item()))
        norm_rel = max(norm_rel, _over(norm, wanted.norm().item()))
    return Difference(max_abs, max_rel, norm_rel)


def _over(error: float, size: float) -> float:
    """An error over a size; infinite where either is."""
    return error / max(size, 1e-12) if math.isfinite(size) else math.inf
