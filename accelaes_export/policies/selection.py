"""Which tokens are focus and which are background, from a score per token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from accelaes_export.errors import InputError

if TYPE_CHECKING:
    from accelaes_export.policies.base import Selector
    from accelaes_export.policies.estimates import Estimates

Score = Callable[[torch.Tensor | None, torch.Tensor | None], torch.Tensor]
"""From affinity and mask [b, N] to a number a token."""


def top_tokens(score: torch.Tensor, n: int) -> torch.Tensor:
    """The focus index [b, n] int64, ascending: each row's n largest of `score` [b, N], ties to the lower index.

    Raises:
        InputError: unless 1 <= n <= N.
    """
    tokens = score.shape[1]
    if not 1 <= n <= tokens:
        raise InputError(
            f"{n} focus tokens were asked for; allowed are 1 to N = {tokens}: take one of the bundle's buckets."
        )
    # topk leaves open which of equal scores it takes; a stable sort doesn't, so a seed gives one picture everywhere.
    order = score.sort(dim=1, descending=True, stable=True).indices
    return order[:, :n].sort(dim=1).values


def background_of(focus_index: torch.Tensor, tokens: int) -> torch.Tensor:
    """The other tokens' index [b, N - n] int64, ascending, for a focus index [b, n] of N = `tokens`."""
    b, n = focus_index.shape
    focus = torch.zeros(b, tokens, dtype=torch.int8, device=focus_index.device)
    focus.scatter_(1, focus_index, 1)
    # Stable: background (0) comes first and in order. The number of each is known, so the host needn't ask.
    return focus.argsort(dim=1, stable=True)[:, : tokens - n]


def focus_mask(focus_index: torch.Tensor, tokens: int) -> torch.Tensor:
    """M [b, N] fp32 (Eq. 7): 1 at the tokens of `focus_index` [b, n], 0 elsewhere."""
    mask = torch.zeros(focus_index.shape[0], tokens, dtype=torch.float32, device=focus_index.device)
    return mask.scatter_(1, focus_index, 1.0)


def focus_count(fraction: float, tokens: int) -> int:
    """n of the bucket n/N = `fraction`: rounded, halves up, at least 1."""
    return min(max(math.floor(tokens * fraction + 0.5), 1), tokens)


class OneShotMask:
    """AesMask as a selector: the affinity of one step. Every image has its own mask; what came since plays no part.

    Args:
        step: the step whose affinity is the mask.
        fraction: n/N of the mask, which spatial guidance uses.
    """

    moving = False

    def __init__(self, step: int, fraction: float = 0.5) -> None:
        self.mask_step = step
        self.fraction = fraction

    def score(self, estimates: Estimates, affinity: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
        """The affinity."""
        assert affinity is not None, "it is asked once the mask step was observed"
        return affinity


class FocusSets:
    """The sets chosen in a run, and the affinity and mask that a selector may look at.

    Args:
        selector: says which tokens.
    """

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self._affinity: torch.Tensor | None = None
        self._mask: torch.Tensor | None = None
        self._chosen: dict[int, torch.Tensor] = {}  # by step, of the latest alone; by n where sets stay

    def observe(self, i: int, affinity: torch.Tensor) -> None:
        """Keep `affinity` [b, N] if `i` is the mask step; any other step's is ignored."""
        if i == self.selector.mask_step:
            self._affinity = affinity.clone()  # the caller may reuse its output buffer
            tokens = affinity.shape[1]
            self._mask = focus_mask(top_tokens(self._affinity, focus_count(self.selector.fraction, tokens)), tokens)
            self._chosen = {}

    def select(self, i: int, n: int, score: Score) -> torch.Tensor:
        """The focus index [b, n] of step i; a second call for the same step gets the first one's.

        Args:
            score: the selector's, of affinity and mask.

        Raises:
            InputError: where the mask plays a part and its step was never observed.
        """
        at = self.selector.mask_step
        if at is not None and self._affinity is None:
            raise InputError(
                f"Step {i} is SPARSE, but the mask is built after step {at} and that step's affinity was never "
                f"observed: keep steps 0 to {at} DENSE, or give a smaller mask_step."
            )
        key = i if self.selector.moving else n
        if key not in self._chosen:
            if self.selector.moving:
                self._chosen = {}
            self._chosen[key] = top_tokens(score(self._affinity, self._mask), n)
        return self._chosen[key]

    def affinity(self) -> torch.Tensor | None:
        """The affinity [b, N] the mask is built from, or None before it exists, or where there is none."""
        return self._affinity

    def mask(self) -> torch.Tensor | None:
        """M [b, N] fp32 of Eq. 7 at the selector's fraction, or None before it exists, or where there is none."""
        return self._mask
