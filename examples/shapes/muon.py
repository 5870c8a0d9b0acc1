"""Muon: momentum, each matrix of it brought near an orthogonal one before the step (Jordan et al., 2024)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

# The quintic that drives every singular value towards one in five rounds, near zero the fastest.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Matrices [b, rows, columns] with their singular values brought near one, by Newton-Schulz iteration."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # the Gram matrix of the short side is the cheap one
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised. Parameters must be matrices; equal shapes are worked on together."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                updates = [self._momentum(parameter, group["momentum"]) for parameter in parameters]
                updates = orthogonalise(torch.stack(updates)) * max(1.0, rows / columns) ** 0.5
                torch._foreach_add_(parameters, list(updates), alpha=-group["lr"])

    def _momentum(self, parameter: torch.Tensor, momentum: float) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)
