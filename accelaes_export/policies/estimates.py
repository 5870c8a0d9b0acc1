"""What selectors are shown of a history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Estimates:
    """What a selector may know of b images' tokens before a SPARSE step. Views of a history: not to be written to.

    Attributes:
        last: the latest estimated prediction [b, N, P, C] fp32, every token's own last one, as the channels of each of
            its P latent cells.
        drift: norm of the change between a token's last two predictions, per unit of the clock [b, N] fp32; inf where
            there are no two. None: the history keeps one (order 0).
        age: time on the clock since the token ran [b, N] fp32.
        drops: computed steps since the token ran [b, N] fp32.
    """

    last: torch.Tensor
    drift: torch.Tensor | None
    age: torch.Tensor
    drops: torch.Tensor
