"""Selectors that choose anew at every SPARSE step, by what is known of each token's predictions.

Their scores are kept as logarithms, whose order is that of the scores and which neither overflow nor vanish.
"""

from __future__ import annotations

from typing import Literal

import torch

from accelaes_export.policies.estimates import Estimates

FLOOR = 1e-3
"""Of a row's mean: no measure counts as smaller. A token of measure 0 would be chosen always, or never."""


class RegionAdaptive:
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

    moving = True

    def __init__(
        self,
        metric: Literal["std", "norm"],
        starvation: float,
        *,
        kept: float = 0.0,
        mask_step: int | None = None,
    ) -> None:
        self.mask_step = mask_step
        self.fraction = kept or 0.5
        self._metric = metric
        self._starvation = starvation
        self._kept = kept

    def score(self, estimates: Estimates, affinity: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
        """log R, negated where the smallest are chosen, + k D; inf for tokens that always run."""
        if self._metric == "std":
            measure = -_log(estimates.last.std(dim=-1, correction=0).mean(dim=-1))
        else:
            measure = _log(estimates.last.flatten(2).norm(dim=-1))
        score = measure + self._starvation * estimates.drops
        return score if mask is None or not self._kept else torch.where(mask > 0, torch.inf, score)


class LargestDrift:
    """Tokens whose prediction has probably moved farthest since they ran: change per step x steps since.

    It goes round by itself, as what isn't computed grows stale: FLOOR bounds how long any token waits.

    Args:
        mask_weight: exponent w of a token's affinity over the picture's mean: score x (m / mean m)^w.
        mask_step: the step whose affinity that is, or None.
        fraction: n/N of the mask, which spatial guidance uses.
    """

    moving = True

    def __init__(self, mask_weight: float = 0.0, mask_step: int | None = None, fraction: float = 0.5) -> None:
        self.mask_step = mask_step
        self.fraction = fraction
        self._mask_weight = mask_weight

    def score(self, estimates: Estimates, affinity: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
        """log(drift) + log(age), + w log(m / mean m) with a mask."""
        assert estimates.drift is not None, "policies that select by drift keep two predictions of every token"
        score = _log(estimates.drift) + estimates.age.log()
        return score if affinity is None or not self._mask_weight else score + self._mask_weight * _log(affinity)


def _log(measure: torch.Tensor) -> torch.Tensor:
    """log(measure [b, N] / the row's mean), at least log FLOOR; inf stays inf. Means are over finite values."""
    known = measure.isfinite()
    counted = known.sum(dim=1, keepdim=True, dtype=measure.dtype).clamp(min=1)
    mean = torch.where(known, measure, 0.0).sum(dim=1, keepdim=True) / counted
    relative = measure / mean.clamp(min=torch.finfo(measure.dtype).tiny)
    # Not `clamp`: without an upper bound it has the largest float for one in ONNX, and inf would be a number.
    return torch.maximum(relative, relative.new_full((), FLOOR)).log()
