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


class FocusSelector:
    """What selectors share: the affinity they may look at, the mask made of it, and the sets chosen so far.

    Which tokens it is, `score` says alone, as a function of tensors that any runtime can compute.

    Args:
        mask_step: the step whose affinity is observed, or None where it plays no part.
        fraction: n/N of `mask`, the mask spatial guidance uses.
    """

    moving: bool
    """Whether focus sets of one size differ between steps; where they don't, the first one stays."""

    def __init__(self, mask_step: int | None, fraction: float) -> None:
        self.mask_step = mask_step
        self.fraction = fraction
        self._affinity: torch.Tensor | None = None
        self._mask: torch.Tensor | None = None
        self._chosen: dict[int, torch.Tensor] = {}  # by step, of the latest alone; by n where sets stay

    def score(self, estimates: Estimates, affinity: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
        """[b, N] fp32: the n largest are focus tokens. A fixed sequence of operations, without a sort or scatter.

        Args:
            estimates: what is known of the tokens.
            affinity, mask: both [b, N], of the mask step; None without one.
        """
        raise NotImplementedError

    def observe(self, i: int, affinity: torch.Tensor) -> None:
        """Keep `affinity` [b, N] if `i` is the mask step; any other step's is ignored."""
        if i == self.mask_step:
            self._affinity = affinity.clone()  # the caller may reuse its output buffer
            tokens = affinity.shape[1]
            self._mask = focus_mask(top_tokens(self._affinity, focus_count(self.fraction, tokens)), tokens)
            self._chosen = {}

    def select(self, i: int, n: int, estimates: Estimates) -> torch.Tensor:
        """The focus index [b, n] of step i; a second call for the same step gets the first one's.

        Raises:
            InputError: where the mask plays a part and its step was never observed.
        """
        if self.mask_step is not None and self._affinity is None:
            raise InputError(
                f"Step {i} is SPARSE, but the mask is built after step {self.mask_step} and that step's affinity was "
                f"never observed: keep steps 0 to {self.mask_step} DENSE, or give a smaller mask_step."
            )
        key = i if self.moving else n
        if key not in self._chosen:
            if self.moving:
                self._chosen = {}
            self._chosen[key] = top_tokens(self.score(estimates, self._affinity, self._mask), n)
        return self._chosen[key]

    def affinity(self) -> torch.Tensor | None:
        """The affinity [b, N] the mask is built from, or None where there is none."""
        return self._affinity

    def mask(self) -> torch.Tensor | None:
        """M [b, N] fp32 of Eq. 7 at this selector's fraction, or None where there is no mask."""
        return self._mask


class OneShotMask(FocusSelector):
    """AesMask as a selector: the affinity of one step, kept for the rest of the run. Every image has its own mask.

    Args:
        step: the step whose affinity is the mask.
        fraction: n/N of `mask`, the mask spatial guidance uses.
    """

    moving = False

    def __init__(self, step: int, fraction: float = 0.5) -> None:
        super().__init__(step, fraction)

    def score(self, estimates: Estimates, affinity: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
        """The affinity: what was predicted since plays no part."""
        assert affinity is not None, "it is asked once the mask step was observed"
        return affinity
