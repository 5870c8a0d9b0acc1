"""Gates: whether a step is computed, decided during the run by its own numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from accelaes_export.policies.history_state import Clock

if TYPE_CHECKING:
    from accelaes_export.policies.programs import Compute

GateState = Mapping[str, torch.Tensor]


class AccumulatedChange:
    """TeaCache's; see `Gate`. The change of the latents from step to step adds up to `threshold`.

    Its state: the latents `before`, the `change` summed up since the last computed step, whether anything was `seen`.

    Args:
        threshold: where a step is computed.
        coefficients: of the polynomial from the latents' relative change to the output's, the highest power's first.
    """

    observes = False

    def __init__(self, threshold: float, coefficients: Sequence[float]) -> None:
        self._threshold = threshold
        self._coefficients = coefficients

    def nothing_seen(self, latents: torch.Tensor, prediction: torch.Tensor) -> GateState:
        return {"before": torch.zeros_like(latents), "change": latents.new_zeros(()), "seen": latents.new_zeros(())}

    def decide(self, state: GateState, latents: torch.Tensor, i: Clock) -> tuple[GateState, torch.Tensor]:
        before = state["before"]
        change = (latents - before).abs().mean() / before.abs().mean()
        output = torch.zeros_like(change)
        for coefficient in self._coefficients:
            output = output * change + coefficient
        total = state["change"] + output
        computed = (state["seen"] == 0) | ~(total < self._threshold)  # a change that is no number computes
        after = {
            "before": latents,
            "change": torch.where(computed, 0.0, total),
            "seen": (state["seen"] + 1).clamp(max=1),
        }
        return after, computed

    def observe(self, state: GateState, prediction: torch.Tensor) -> GateState:
        """What was predicted plays no part."""
        return state


class ForeseenChange:
    """EasyCache's; see `Gate`. The change foreseen of the output, from the latents' own, adds up to `threshold`.

    Its state: the latents `before`; latents and prediction at the last computed step (`at`, `predicted`), where there
    was one (`any`); the `rate` between their changes, over the prediction's size, where it is `known`; the `change`
    summed up since.

    Args:
        threshold: where a step is computed.
        warmup: the first steps, all computed.
    """

    observes = True

    def __init__(self, threshold: float, warmup: int) -> None:
        self._threshold = threshold
        self._warmup = warmup

    def nothing_seen(self, latents: torch.Tensor, prediction: torch.Tensor) -> GateState:
        none, zero = torch.zeros_like(latents), latents.new_zeros(())
        numbers = dict.fromkeys(("any", "rate", "known", "change"), zero)
        return {"before": none, "at": none, "predicted": torch.zeros_like(prediction), **numbers}

    def decide(self, state: GateState, latents: torch.Tensor, i: Clock) -> tuple[GateState, torch.Tensor]:
        total = state["change"] + state["rate"] * (latents - state["before"]).abs().mean()
        # A change that is no number computes.
        computed = (i < self._warmup) | (state["known"] == 0) | ~(total < self._threshold)
        return {**state, "before": latents, "change": torch.where(computed, 0.0, total)}, computed

    def observe(self, state: GateState, prediction: torch.Tensor) -> GateState:
        latents, any_before = state["before"], state["any"] > 0
        moved = (latents - state["at"]).abs().mean()
        rate = (prediction - state["predicted"]).abs().mean() / moved / prediction.abs().mean()
        return {
            **state,
            "at": latents,
            "predicted": prediction,
            "any": (state["any"] + 1).clamp(max=1),
            "rate": torch.where(any_before, rate, 0.0),
            "known": state["any"],
        }


class Decisions:
    """The decisions of one run. All its images share them, and each waits for the device.

    Args:
        decide, observe: the policy's programs (`programs`); observe is None where predictions play no part.
        nothing_seen: the gate's state before the first step, of latents like these, as its programs call it.
    """

    def __init__(
        self, decide: Compute, observe: Compute | None, nothing_seen: Callable[[torch.Tensor], GateState]
    ) -> None:
        self._decide = decide
        self._observe = observe
        self._nothing_seen = nothing_seen
        self._state: GateState = {}
        self._shape: torch.Size | None = None
        self._decided: tuple[int, bool] | None = None

    def computes(self, i: int, latents: torch.Tensor, *, last: bool) -> bool:
        """Whether step i is computed; the `last` of the run always is. A step's second call gets the same answer.

        Args:
            latents: [B, ...], of all images. Of another shape than before they belong to nothing that was seen.
        """
        if self._decided is None or self._decided[0] != i:
            now = latents.detach().float()
            if now.shape != self._shape:
                self._state, self._shape = self._nothing_seen(now), now.shape
            after = dict(self._decide({**self._state, "latents": now, "step": i}))
            wanted = after.pop("wanted")
            self._state, self._decided = after, (i, bool(wanted) or last)
        return self._decided[1]

    def observe(self, prediction: torch.Tensor) -> None:
        """What was predicted, [B, N, w], at the step decided on last, which was computed; not of its second call."""
        if self._observe is not None:
            self._state = self._observe({**self._state, "prediction": prediction.detach().float()})
