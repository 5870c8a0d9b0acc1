"""Ranges of blocks that a step can leave out: what they change is an output of the dense step, and an input of a
second graph that has the other blocks alone (Δ-DiT's cache).

A range's change is its output minus its input, of every stream that goes through it: the image's hidden states, and
the text's in joint models. Blocks are diffusers' own; how they are called is read from their forward's signature.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from accelaes_export.backbones.base import Backbone, PartSite
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.tensors import (
    FOCUS_PREDICTION,
    HIDDEN_STATES,
    TIMESTEP,
    BlockRange,
    GraphContract,
    TensorSpec,
)
from accelaes_export.errors import InputError

_IMAGE, _TEXT = "hidden_states", "encoder_hidden_states"  # diffusers' names for what blocks take


def block_ranges(
    backbone: Backbone, model: Any, given: Sequence[tuple[int, int]], latents: Latents, *, form: str, dtype: str
) -> tuple[BlockRange, ...]:
    """The `given` (first, last) of a model's blocks as a contract has them.

    Args:
        model: the transformer; on the meta device will do.

    Raises:
        InputError: a range outside the model's blocks, or of all of them.
    """
    L = len(_places(backbone, model))
    width = next(site.width for site in backbone.sites(model) if isinstance(site, PartSite) and site.name)
    tokens = "n" if form == "token" else latents.tokens
    found = []
    for first, last in given:
        if not 0 <= first < last <= L or last - first == L:
            raise InputError(
                f"Block range {first}:{last} can't be left out of a model of {L} blocks; give FIRST:LAST with "
                f"0 <= FIRST < LAST <= {L} and at least one block left, such as 0:{max(1, L // 2)}."
            )
        name = f"change.{first}_{last}"
        changes = [TensorSpec(name=name, dtype=dtype, shape=("B", tokens, width))]
        if backbone.text_stream and last < L:  # behind the last block nobody reads the text
            changes.append(TensorSpec(name=f"{name}.text", dtype=dtype, shape=("B", "M", width)))
        found.append(BlockRange(first=first, last=last, of=L, changes=tuple(changes)))
    return tuple(found)


def contract_without(contract: GraphContract, blocks: BlockRange) -> GraphContract:
    """The contract of the graph that leaves a range out: all N tokens, nothing cached, its changes among the inputs."""
    kept = {HIDDEN_STATES, TIMESTEP, *contract.conditioning}
    prediction = next(spec for spec in contract.outputs if spec.name == FOCUS_PREDICTION)

    def whole(spec: TensorSpec) -> TensorSpec:
        return spec.model_copy(update={"shape": tuple(contract.tokens if d == "n" else d for d in spec.shape)})

    return contract.model_copy(
        update={
            "buckets": (contract.tokens,),
            "inputs": (*(spec for spec in contract.inputs if spec.name in kept), *map(whole, blocks.changes)),
            "outputs": (whole(prediction),),
            "cache": (),
            "ranges": (),
            "without": blocks.model_copy(update={"changes": tuple(map(whole, blocks.changes))}),
        }
    )


class RangeChange:
    """Hooks on a range's first and last block that take what it changed in the step under way."""

    def __init__(self, backbone: Backbone, model: Any, blocks: BlockRange) -> None:
        inside = [owner[k] for owner, k in _places(backbone, model)[blocks.first : blocks.last]]
        self._count = len(blocks.changes)
        self._before: list[torch.Tensor] = []
        self.changes: list[torch.Tensor] = []
        self.hooks = [
            inside[0].register_forward_pre_hook(self._enter, with_kwargs=True),
            inside[-1].register_forward_hook(self._leave),
        ]

    def _enter(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._before = _streams(inspect.signature(block.forward), args, kwargs)

    def _leave(self, _: Any, __: Any, output: Any) -> None:
        after = [output[1], output[0]] if isinstance(output, tuple) else [output]  # the text's comes first
        pairs = list(zip(after, self._before, strict=False))[: self._count]
        self.changes = [now - before for now, before in pairs]


class LeftOutRange:
    """Stand-ins in a range's place: the first adds the range's changes, the others pass on what they are given."""

    def __init__(self, backbone: Backbone, model: Any, blocks: BlockRange) -> None:
        self._places = _places(backbone, model)[blocks.first : blocks.last]
        self._own = [owner[k] for owner, k in self._places]
        stand_ins = [_StandIn(block, joint=backbone.text_stream) for block in self._own]
        self._first = stand_ins[0]
        if blocks.first == 0:
            for name in backbone.read_parts:
                setattr(self._first, name, getattr(self._own[0], name))
        for (owner, k), stand_in in zip(self._places, stand_ins, strict=True):
            owner[k] = stand_in
        self._names = [spec.name for spec in blocks.changes]

    def begin(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Take a step's inputs by name."""
        self._first.changes = [inputs[name] for name in self._names]

    def restore(self) -> None:
        """Put the model's own blocks back."""
        for (owner, k), own in zip(self._places, self._own, strict=True):
            owner[k] = own


class _StandIn(torch.nn.Module):
    """Called like a block, without its weights."""

    def __init__(self, block: Any, *, joint: bool) -> None:
        super().__init__()
        self._signature = inspect.signature(block.forward)
        self._joint = joint
        self.changes: list[torch.Tensor] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        streams = _streams(self._signature, args, kwargs)
        for k, change in enumerate(self.changes):
            streams[k] = streams[k] + change
        return (streams[1], streams[0]) if self._joint else streams[0]


def _streams(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The image's hidden states a block is called with and, where it has a place for them, the text's."""
    arguments = signature.bind(*args, **kwargs).arguments
    return [arguments[name] for name in (_IMAGE, _TEXT) if name in arguments]


def _places(backbone: Backbone, model: Any) -> list[tuple[Any, int]]:
    """Every block as its list and its place in it, in the order they are computed in."""
    lists = (getattr(model, name) for name in backbone.block_lists)
    return [(blocks, k) for blocks in lists for k in range(len(blocks))]
