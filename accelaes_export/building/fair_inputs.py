"""Made-up inputs that two right engines answer alike.

A trained model that has only ever read its own text encoder's rows may answer chaos with chaos: standard-normal rows
can be so loud that attention turns over with the last bit of a number, and then the model in fp32 is as far from itself
in float64 as any engine is. Such a comparison says nothing of the engine. So where one fails, the model is asked how
far it moves when its inputs do by a rounding; if that accounts for the difference, both are asked again with quieter
text. An engine that is wrong differs by far more, and fails however loud the text is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from accelaes_export.contract.tensors import HIDDEN_STATES, GraphContract

LOUDNESS = 1.0, 1 / 4, 1 / 16, 1 / 64
"""Standard deviations of made-up text, tried in turn."""

ROUNDINGS = 30.0
"""How much further than its inputs' roundings move it an engine may be, whose every operation rounds."""


def accounts(moved: float, error: float) -> bool:
    """Whether how far a rounding of its inputs moves a model accounts for an engine's error."""
    return math.isfinite(error) and error <= ROUNDINGS * moved


def of_loudness(
    inputs: Mapping[str, torch.Tensor], contract: GraphContract, loudness: float
) -> dict[str, torch.Tensor]:
    """Inputs whose text and what is pooled of it have another standard deviation than 1."""
    text = set(contract.conditioning) & _unbounded(contract)
    return {name: tensor * loudness if name in text else tensor for name, tensor in inputs.items()}


def nudged(inputs: Mapping[str, torch.Tensor], contract: GraphContract) -> dict[str, torch.Tensor]:
    """The same in fp32, moved by a rounding of the engine's dtype: latents and text, each number up or down."""
    moved = {HIDDEN_STATES, *contract.conditioning} & _unbounded(contract)
    found = dict(inputs)
    for name in sorted(moved & set(inputs)):
        tensor = inputs[name]
        generator = torch.Generator(tensor.device).manual_seed(0)
        signs = 2 * torch.randint(2, tensor.shape, generator=generator, device=tensor.device) - 1
        found[name] = tensor.float() * (1 + torch.finfo(tensor.dtype).eps * signs)
    return found


def _unbounded(contract: GraphContract) -> set[str]:
    """Inputs that are any real number: no mask, label or timestep."""
    return {spec.name for spec in contract.inputs if spec.kind == "real" and spec.limit is None}
