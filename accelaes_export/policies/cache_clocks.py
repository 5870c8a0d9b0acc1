"""When tokens' cached tensors were made, and how far the background's are carried on (Eq. 12, of keys and values).

Pure functions of tensors of fixed shape, as in `history_state`: a clock value is a number, or a tensor of one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from accelaes_export.policies.history_state import Clock


class CacheClocks(NamedTuple):
    """Of every token of B rows, [B, N] fp32 each; all zeros before the first step.

    Attributes:
        latest, before: the clock when its cached tensors were made last, and the time before.
        made: how often they were, up to 2.
    """

    latest: torch.Tensor
    before: torch.Tensor
    made: torch.Tensor


def made(clocks: CacheClocks, clock: Clock, computed: torch.Tensor) -> CacheClocks:
    """The state after tokens `computed` [B, N] bool were made at `clock`."""
    return CacheClocks(
        torch.where(computed, clock, clocks.latest),
        torch.where(computed, clocks.latest, clocks.before),
        (clocks.made + computed).clamp(max=2),
    )


def carried(clocks: CacheClocks, clock: Clock, reach: float) -> torch.Tensor:
    """[B, N] fp32: time since a token was made, in gaps between its last two, at most `reach`.

    0 for tokens that were made once, or twice at one time.
    """
    gap = clocks.latest - clocks.before
    known = (clocks.made >= 2) & gap.bool()
    return torch.where(known, (clock - clocks.latest) / gap, 0.0).clamp(max=reach)
