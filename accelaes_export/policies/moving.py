"""Selectors that choose anew at every SPARSE step, by what is known of each token's predictions.

Their scores are kept as logarithms, whose order is that of the scores and which neither overflow nor vanish. Every
method is a fixed sequence of tensor operations: nothing waits for the device.
"""

from __future__ import annotations

from typing import Literal

import torch

from accelaes_export.errors import InputError
from accelaes_export.policies.estimates import Estimates
from accelaes_export.policies.selection import focus_count, focus_mask, top_tokens

FLOOR = 1e-3
"""Of a row's mean: no measure counts as smaller. A token of measure 0 would be chosen always, or never."""


class MovingFocus:
    """What selectors of a new focus set at every sparse step share; `score` says which tokens.

    Args:
        mask_step: the step whose affinity is observed, or None where it plays no part.
        fraction: n/N of `mask`, the mask spatial guidance uses.
    """

    moving = True

    def __init__(self, mask_step: int | None = None, fraction: float = 0.5) -> None:
        self._mask_step = mask_step
        self._fraction = fraction
        self._affinity: torch.Tensor | None = None
        self._mask: torch.Tensor | None = None
        self._chosen: tuple[int, torch.Tensor] | None = None  # the latest step and its focus index

    def score(self, estimates: Estimates, affinity: torch.Tensor | None) -> torch.Tensor:
        """[b, N] fp32: the n largest are focus tokens. `affinity` [b, N] is None without a mask step."""
        raise NotImplementedError

    def observe(self, i: int, affinity: torch.Tensor) -> None:
        """Keep `affinity` [b, N] if `i` is the mask step; any other step's is ignored."""
        if i == self._mask_step:
            self._affinity = affinity.clone()  # the caller may reuse its output buffer
            tokens = affinity.shape[1]
            self._mask = focus_mask(top_tokens(self._affinity, focus_count(self._fraction, tokens)), tokens)

    def select(self, i: int, n: int, estimates: Estimates) -> torch.Tensor:
        """The focus index [b, n] of step i; a second call for the same step gets the first one's.

        Raises:
            InputError: where the mask plays a part and its step was never observed.
        """
        if self._chosen is None or self._chosen[0] != i:
            if self._mask_step is not None and self._affinity is None:
                raise InputError(
                    f"Step {i} is SPARSE, but the mask is built after step {self._mask_step} and that step's affinity "
                    f"was never observed: keep step {self._mask_step} DENSE, or leave the mask out."
                )
            self._chosen = i, top_tokens(self.score(estimates, self._affinity), n)
        return self._chosen[1]

    def affinity(self) -> torch.Tensor | None:
        """The affinity [b, N] the mask is built from, or None where there is none."""
        return self._affinity

    def mask(self) -> torch.Tensor | None:
        """M [b, N] fp32 of Eq. 7 at this selector's fraction, or None where there is no mask."""
        return self._mask


class RegionAdaptive(MovingFocus):
    """RAS (its Eq. 1): tokens with the smallest deviation or the largest norm, and those dropped for long.

    The factor exp(k D) has the sign that makes a token dropped D times *more* likely to run: R exp(-k D) where the
    smallest are chosen, R exp(+k D) where the largest are. No token waits for longer than log(N / FLOOR) / k +
    2 ceil(N / n) sparse steps.

    Args:
        metric: "std": the deviation over channels, averaged over a token's patch; "norm": the L2 norm of the token.
        starvation: k, at least 0; with 0 tokens may starve.
        kept: n/N of the tokens with the largest affinity, which run at every sparse step (union with AesMask).
        mask_step: the step whose affinity that is.
    """

    def __init__(
        self,
        metric: Literal["std", "norm"],
        starvation: float,
        *,
        kept: float = 0.0,
        mask_step: int | None = None,
    ) -> None:
        super().__init__(mask_step, kept or 0.5)
        self._metric = metric
        self._starvation = starvation
        self._kept = kept

    def score(self, estimates: Estimates, affinity: torch.Tensor | None) -> torch.Tensor:
        """log R, negated where the smallest are chosen, + k D; inf for tokens that always run."""
        if self._metric == "std":
            measure = -_log(estimates.last.std(dim=-1, correction=0).mean(dim=-1))
        else:
            measure = _log(estimates.last.flatten(2).norm(dim=-1))
        score = measure + self._starvation * estimates.drops
        if affinity is None or not self._kept:
            return score
        tokens = affinity.shape[1]
        always = top_tokens(affinity, focus_count(self._kept, tokens))
        return score.scatter(1, always, torch.inf)


class LargestDrift(MovingFocus):
    """Tokens whose prediction has probably moved farthest since they ran: change per step x steps since.

    It goes round by itself, as what isn't computed grows stale: FLOOR bounds how long any token waits.

    Args:
        mask_weight: exponent w of a token's affinity over the picture's mean: score x (m / mean m)^w.
        mask_step: the step whose affinity that is, or None.
        fraction: n/N of `mask`.
    """

    def __init__(self, mask_weight: float = 0.0, mask_step: int | None = None, fraction: float = 0.5) -> None:
        super().__init__(mask_step, fraction)
        self._mask_weight = mask_weight

    def score(self, estimates: Estimates, affinity: torch.Tensor | None) -> torch.Tensor:
        """log(drift) + log(age), + w log(m / mean m) with a mask."""
        assert estimates.drift is not None, "policies that select by drift keep two predictions of every token"
        score = _log(estimates.drift) + estimates.age.log()
        return score if affinity is None or not self._mask_weight else score + self._mask_weight * _log(affinity)


def _log(measure: torch.Tensor) -> torch.Tensor:
    """log(measure [b, N] / the row's mean), at least log FLOOR; inf stays inf. Means are over finite values."""
    known = measure.isfinite()
    mean = torch.where(known, measure, 0.0).sum(dim=1, keepdim=True) / known.sum(dim=1, keepdim=True).clamp(min=1)
    relative = measure / mean.clamp(min=torch.finfo(measure.dtype).tiny)
    return relative.clamp(min=FLOOR).log()
