"""The diffusers models under peers: copies around the same weights, their blocks, and what is mended in them."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch


def with_shared_weights(model: torch.nn.Module) -> Any:
    """A copy of a model's modules whose parameters and buffers are the model's own tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def blocks_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The transformer blocks, in order: everything in the model's own module lists."""
    return [block for part in model.children() if isinstance(part, torch.nn.ModuleList) for block in part]


def give_text_on(block: torch.nn.Module) -> None:
    """Let a block that returns None for its text (SD3's last, whose text nobody reads) return the text it was given.

    diffusers' caches and cache-dit take differences of what blocks return, and can't take one of None.
    """
    own = block.forward
    position = list(inspect.signature(own).parameters).index("encoder_hidden_states")

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        outputs = own(*args, **kwargs)
        if not isinstance(outputs, tuple):
            return outputs
        text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[position]
        return tuple(text if output is None else output for output in outputs)

    block.forward = forward


def tell(module: torch.nn.Module, called: Callable[[], None]) -> None:
    """Call `called` whenever a module's own forward runs, beneath whatever hooks come later."""
    own = module.forward

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        called()
        return own(*args, **kwargs)

    module.forward = forward
