"""Weights one tensor at a time: a model is traced with its large matrices left out, and they are read when written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.base import Backbone
from accelaes_export.contract.dtypes import torch_dtype

if TYPE_CHECKING:
    import torch

Read = Callable[[str], "torch.Tensor | None"]
"""A parameter or saved buffer by name, in the build's dtype; None for a name that isn't kept."""

_LARGE = 2**20  # numbers; matrices from here on are left out of a hollow model
_BLOCK = 1_048_573  # prime, so that no row of a random weight repeats another's values


def stored_weights(files: Iterable[Path], dtype: str) -> Read:
    """Reads tensors out of safetensors files, each when it is asked for."""
    from safetensors import safe_open

    where = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            where.update(dict.fromkeys(tensors.keys(), file))

    def read(name: str) -> torch.Tensor | None:
        if name not in where:
            return None
        # Opened anew: what a mapped file has been read of would stay in memory as long as it is open.
        with safe_open(where[name], framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(name)
            return tensor.to(torch_dtype(dtype)) if tensor.is_floating_point() else tensor.clone()

    return read


def random_weights(shapes: Mapping[str, tuple[int, ...]], dtype: str, seed: int) -> Read:
    """Random parameters, the same for the same seed, in whichever order they are asked for.

    Matrices are normal with variance 1 / fan-in, so activations stay in range at any depth; norms are about 1.
    A block of normal numbers is repeated through the weights: drawing billions of them would take minutes.

    Args:
        shapes: of every parameter, in the model's order.
    """
    import torch

    numbers = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(seed))
    scaled: dict[tuple[float, float], torch.Tensor] = {}  # half-precision arithmetic is slow on CPUs: once a scale
    starts, at = {}, 0
    for name, shape in shapes.items():
        starts[name] = at
        at = (at + math.prod(shape)) % _BLOCK

    def read(name: str) -> torch.Tensor | None:
        if name not in shapes:
            return None
        shape, start = shapes[name], starts[name]
        size = math.prod(shape)
        if len(shape) > 1:
            scale = (0.0, math.prod(shape[1:]) ** -0.5)
        else:
            scale = (float("norm" in name and name.endswith("weight")), 0.02)
        if scale not in scaled:
            scaled[scale] = (scale[0] + scale[1] * numbers).to(torch_dtype(dtype))
        repeats = -(-(start + size) // _BLOCK)
        return scaled[scale].repeat(repeats)[start : start + size].clone().view(shape)

    return read


def hollow_transformer(
    backbone: Backbone, config: Mapping[str, Any], read: Read, dtype: str, large: int = _LARGE
) -> torch.nn.Module:
    """The diffusers model with one number standing for each matrix of `large` numbers or more; everything else is read.

    It can be traced, as tracing looks at shapes. The small weights are there because exporters compute with them.
    """
    import diffusers
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = getattr(diffusers, backbone.class_name).from_config(dict(config))
    return filled(model, read, dtype, large, cast_buffers=True)


def filled(model: Any, read: Read, dtype: str, large: int = _LARGE, *, cast_buffers: bool = False) -> torch.nn.Module:
    """A model without memory, given its weights but for matrices of `large` numbers or more; in eval mode.

    Args:
        read: has every parameter, in `dtype`.
        cast_buffers: to `dtype`, where a graph has one for all activations; otherwise they keep their own.
    """
    import torch

    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        if parameter.ndim == 2 and parameter.numel() >= large:
            value = torch.zeros((), dtype=torch_dtype(dtype)).expand(parameter.shape)
        else:
            found = read(name)
            assert found is not None, name
            value = found
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(value, requires_grad=False))
    for name, buffer in list(model.named_buffers()):
        saved = read(name)
        owner, _, leaf = name.rpartition(".")
        value = buffer if saved is None else saved
        value = value.to(torch_dtype(dtype)) if cast_buffers and value.is_floating_point() else value
        setattr(model.get_submodule(owner), leaf, value)
    return model.eval()


def is_hollow(tensor: torch.Tensor) -> bool:
    """Whether one number stands for all of them."""
    return tensor.ndim == 2 and tensor.stride() == (0, 0) and tensor.numel() > 1
