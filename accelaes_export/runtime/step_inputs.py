"""What one call of the transformer brings, by the engine's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StepInputs:
    """A step's inputs beside its index.

    Attributes:
        hidden_states: [B, ...] latents as the pipeline hands them over.
        timestep: [B].
        conditioning: the remaining inputs by name, [B, ...], or without a batch axis where the contract has none.
        paired: whether the rows are both halves of guidance pairs, in the order the family's pipelines have.
        renewed: whether what was cached before doesn't hold any more: keys were rotated by another table.
    """

    hidden_states: torch.Tensor
    timestep: torch.Tensor
    conditioning: Mapping[str, torch.Tensor]
    paired: bool = False
    renewed: bool = False
