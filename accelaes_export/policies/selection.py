"""Which tokens are focus and which are background, from a score per token."""

from __future__ import annotations

import math

import torch

from accelaes_export.errors import InputError
from accelaes_export.policies.estimates import Estimates


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
    """AesMask as a selector: the affinity of one step, kept for the rest of the run. Every image has its own mask.

    Args:
        step: the step whose affinity is the mask.
        fraction: n/N of `mask`, the mask spatial guidance uses.
    """

    moving = False

    def __init__(self, step: int, fraction: float = 0.5) -> None:
        self.step = step
        self.fraction = fraction
        self._affinity: torch.Tensor | None = None
        self._chosen: dict[int, torch.Tensor] = {}  # n -> focus index, sorted once

    def observe(self, i: int, affinity: torch.Tensor) -> None:
        """Keep `affinity` [b, N] if `i` is the mask step; any other step's is ignored."""
        if i == self.step:
            self._affinity = affinity.clone()  # the caller may reuse its output buffer
            self._chosen = {}

    def select(self, i: int, n: int, estimates: Estimates | None = None) -> torch.Tensor:
        """The focus index [b, n]: the n tokens with the largest affinity. What was predicted since plays no part.

        Raises:
            InputError: before the mask step was observed.
        """
        if self._affinity is None:
            raise InputError(
                f"Step {i} is SPARSE, but the mask is built after step {self.step} and that step's affinity was never "
                f"observed: keep steps 0 to {self.step} DENSE, or give a smaller mask_step."
            )
        if n not in self._chosen:
            self._chosen[n] = top_tokens(self._affinity, n)
        return self._chosen[n]

    def affinity(self) -> torch.Tensor | None:
        """The affinity [b, N] the mask is built from, or None before it exists."""
        return self._affinity

    def mask(self) -> torch.Tensor | None:
        """M [b, N] fp32 of Eq. 7 at this selector's fraction, or None before it exists."""
        if self._affinity is None:
            return None
        tokens = self._affinity.shape[1]
        return focus_mask(self.select(self.step, focus_count(self.fraction, tokens)), tokens)
