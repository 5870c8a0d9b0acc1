"""The loop everything is measured in: from noise to latents, with whatever predicts in the middle.

It stands for a pipeline's loop and does what one does between two calls of its transformer: pairs of rows, guidance,
and the update x <- x + (sigma' - sigma) v of a flow-matching Euler scheduler. Policies and peers run in the same one,
on the same noise and conditioning. Latents and embeddings are random: how long a step takes doesn't depend on them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.example_inputs import example_inputs
from accelaes_export.contract.manifest import Manifest
from accelaes_export.contract.tensors import TIMESTEP
from accelaes_export.measure.profiling.spans import RUN, STEP, Spans
from accelaes_export.runtime.denoiser import CONDITIONAL, UNCONDITIONAL
from accelaes_export.runtime.step_inputs import StepInputs

Predict = Callable[[int, StepInputs, str], torch.Tensor]
"""From step index, the call's tensors and the branch to what the transformer would return."""

_DISTILLED = "guidance"  # the input of models that have the scale distilled into them, and need no second pass


class DenoiseProblem:
    """`images` pictures of random noise and conditioning, and T steps to take.

    Args:
        manifest: the bundle's.
        images: b; may be more than one engine call takes.
        steps: T.
        device: where everything lies.
        seed: of noise and conditioning.

    Attributes:
        calls: the transformer's, a step: "cond", and "uncond" where the family guides with a second call.
        paired: whether the rows of a call are both halves of guidance pairs.
        sigmas: T + 1 noise levels from 1 to 0, in equal steps.
    """

    def __init__(self, manifest: Manifest, images: int, steps: int, device: torch.device, seed: int = 0) -> None:
        contract, self._guidance = manifest.geometry.contract, manifest.call.guidance
        guided = manifest.defaults.guidance > 1 and _DISTILLED not in contract.has
        self.paired = guided and self._guidance.pairs
        self.calls = (CONDITIONAL, UNCONDITIONAL) if guided and not self._guidance.pairs else (CONDITIONAL,)
        self.scale = manifest.defaults.guidance
        self.images, self.steps, self.device = images, steps, device
        self.sigmas = [1 - i / steps for i in range(steps + 1)]
        rows = 2 * images if self.paired else images
        drawn = {
            name: example_inputs(contract, contract.tokens, B=rows, seed=seed + k, device=device)
            for k, name in enumerate(self.calls)
        }
        self._dtype = torch_dtype(contract.dtype)
        self._conditioning = {
            branch: {name: inputs[name] for name in contract.conditioning} for branch, inputs in drawn.items()
        }
        noise = drawn[CONDITIONAL]["hidden_states"][:images].float()
        self.noise = noise
        limit = next((spec.limit for spec in contract.inputs if spec.name == TIMESTEP), None) or 1.0
        self._timesteps = [torch.full((rows,), limit * sigma, device=device) for sigma in self.sigmas[:-1]]

    def conditions(self, i: int, latents: torch.Tensor, branch: str = CONDITIONAL) -> StepInputs:
        """The tensors of step i's call, for latents [b, ...] in fp32."""
        rows = latents.to(self._dtype)
        if self.paired:
            rows = torch.cat([rows, rows])
        return StepInputs(rows, self._timesteps[i], self._conditioning[branch], self.paired)

    def run(self, predict: Predict, spans: Spans, name: str) -> torch.Tensor:
        """From noise to latents [b, ...] fp32. Nothing in here waits for the device."""
        x = self.noise
        with spans.span(RUN, name, images=self.images, steps=self.steps):
            for i in range(self.steps):
                predictions = []
                with spans.span(STEP, str(i), index=i):
                    for branch in self.calls:
                        predictions.append(predict(i, self.conditions(i, x, branch), branch))
                velocity = self._guided(predictions)[:, : x.shape[1]]  # without a learned variance
                x = x + (self.sigmas[i + 1] - self.sigmas[i]) * velocity.float()
        return x

    def _guided(self, predictions: list[torch.Tensor]) -> torch.Tensor:
        """u + s (c - u), or the one prediction there is."""
        if self.paired:
            first, second = predictions[0].chunk(2)
            uncond, cond = (first, second) if self._guidance.layout == "uncond_cond" else (second, first)
        elif len(predictions) == 2:
            cond, uncond = predictions
        else:
            return predictions[0]
        return uncond + self.scale * (cond - uncond)
