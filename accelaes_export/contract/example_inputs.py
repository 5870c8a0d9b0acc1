"""Random tensors for every input of a focus step: to trace, verify and time it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.tensors import BACKGROUND_INDEX, FOCUS_INDEX, KEYS, OBSERVED_INDEX, PLACES, GraphContract


def example_inputs(
    contract: GraphContract,
    n: int,
    *,
    B: int | None = None,
    M: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    observed: bool = True,
    counts: Sequence[int] | None = None,
) -> dict[str, torch.Tensor]:
    """Random inputs of a step with `n` focus tokens, each a tensor of its own (an exporter merges shared ones).

    Every row has its own ascending focus set; the rest is as its spec says: bounded numbers are uniform, masks have
    at least one 1, everything else is standard normal. Drawn on the device: a large model's cache takes a host half a
    minute, so a seed's numbers are the same on one kind of device, not on all. For `counts` see `GraphContract.sizes`.
    """
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(seed)
    sizes = contract.sizes(n, B, M, observed=observed, counts=counts)
    N = contract.tokens
    order = torch.stack([torch.randperm(N, generator=generator, device=device) for _ in range(sizes["B"])])
    draw: dict[str, Callable[[tuple[int, ...], float], torch.Tensor]] = {
        "real": lambda shape, limit: limit * torch.rand(shape, generator=generator, device=device),
        "label": lambda shape, limit: torch.randint(int(limit), shape, generator=generator, device=device),
        "mask": lambda shape, _: _prefixes(shape, generator, device),
    }
    inputs = {}
    for spec in contract.inputs:
        shape = spec.sized(sizes)
        if spec.name == FOCUS_INDEX:
            tensor = order[:, :n].sort(dim=1).values
        elif spec.name == BACKGROUND_INDEX:
            tensor = order[:, n:].sort(dim=1).values
        elif spec.name == OBSERVED_INDEX:
            tensor = torch.arange(sizes["a"], device=device).repeat(sizes["B"], 1)
        elif spec.name.startswith((PLACES, KEYS)):
            tensor = torch.arange(shape[0], device=device)
        elif spec.kind == "real" and spec.limit is None:
            tensor = torch.randn(shape, generator=generator, device=device)
        else:
            tensor = draw[spec.kind](shape, spec.limit or 1.0)
        inputs[spec.name] = tensor.to(torch_dtype(spec.dtype))
    return inputs


def _prefixes(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """[B, M] of rows of ones, each with an end of its own, then zeros."""
    ends = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=generator, device=device)
    return (torch.arange(shape[1], device=device) < ends).long()
