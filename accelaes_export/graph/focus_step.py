"""The focus step: a diffusers transformer turned into a function of focus tokens and a cached background.

    focus_step(latents, t, text, focus_index[B,n], background[m]) -> prediction[B,n], affinity[B,n], fresh[n]

n = N with m = 0 is the dense model. The blocks, norms, embeddings and weights are diffusers' own. A step without a
range of blocks (ranges.py) is a graph of its own: all tokens, and the range's changes in its place; so is the
layer-wise step (layerwise.py), whose parts compute tokens of their own choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from accelaes_export.backbones.base import AttentionSite, Backbone, PartSite
from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.example_inputs import example_inputs as example_inputs
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.tensors import (
    AFFINITY,
    BACKGROUND_INDEX,
    FOCUS_INDEX,
    GraphContract,
)
from accelaes_export.graph.focus import ComponentFocus, TokenFocus, WholeFocus
from accelaes_export.graph.layerwise import LayerwiseFocus, layerwise_hooks
from accelaes_export.graph.ranges import LeftOutRange, RangeChange


class FocusStep(torch.nn.Module):
    """A transformer with focus processors installed. `restore()` gives the model its own processors back.

    Attributes:
        focus: carries a step through the blocks.

    Args:
        model: the diffusers transformer, in eval mode.
        backbone: its family's backbone.
        contract: the graph's tensor table; it says which form this is.
        latents: the geometry.
        affinity_layers: block indices whose attention to the text makes the affinity (Eq. 6).
    """

    def __init__(
        self,
        model: Any,
        backbone: Backbone,
        contract: GraphContract,
        latents: Latents,
        affinity_layers: Sequence[int],
    ) -> None:
        super().__init__()
        self.model = model
        self.backbone = backbone
        self.contract = contract
        self.latents = latents
        device = next(model.parameters()).device
        tables = backbone.tables(model, latents)
        self._tables = {name: f"table_{name}" for name in tables}
        for name, table in tables.items():
            self.register_buffer(self._tables[name], table.to(device), persistent=False)
        self._component = BACKGROUND_INDEX in contract.has
        self.focus = self._make_focus(affinity_layers)
        self._sites = backbone.sites(model)
        self._own = [site.module.processor for site in self._attentions]
        self._hooks: list[Any] = []
        self._changes: list[RangeChange] = []
        self._left_out: LeftOutRange | None = None
        self.install()

    def _make_focus(self, affinity_layers: Sequence[int]) -> TokenFocus:
        """What carries a step of this contract through the blocks."""
        contract = self.contract
        if contract.own_parts is not None:
            return LayerwiseFocus(contract, self.latents, self.backbone.family)
        if contract.without is not None:
            return WholeFocus(contract.text_input)
        cache = [entry.name for entry in contract.cache]
        return (ComponentFocus if self._component else TokenFocus)(cache, affinity_layers)

    @property
    def _attentions(self) -> list[AttentionSite]:
        return [site for site in self._sites if isinstance(site, AttentionSite)]

    def install(self) -> None:
        """Put the focus processors and hooks in; done by the constructor."""
        self.restore()
        slot = 0
        for site in self._attentions:
            site.module.set_processor(site.processor(self.focus, slot if site.cached else -1, site.layer))
            slot += site.cached
        if isinstance(self.focus, ComponentFocus):
            slot = 0
            for part in (site for site in self._sites if isinstance(site, PartSite)):
                self._hooks += _hooked(part, self.focus, slot)
                slot += bool(part.name)
        if isinstance(self.focus, LayerwiseFocus):
            self._hooks += layerwise_hooks(self._sites, self.focus)
        self._changes = [RangeChange(self.backbone, self.model, blocks) for blocks in self.contract.ranges]
        self._hooks += [hook for change in self._changes for hook in change.hooks]
        if self.contract.without is not None:
            self._left_out = LeftOutRange(self.backbone, self.model, self.contract.without)

    def restore(self) -> None:
        """Put the model's own attention processors and blocks back and take the hooks out."""
        if self._left_out is not None:
            self._left_out.restore()
            self._left_out = None
        for site, own in zip(self._attentions, self._own, strict=True):
            site.module.set_processor(own)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def forward(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """From the contract's inputs, in its order, to its outputs, in theirs."""
        named = {spec.name: tensor for spec, tensor in zip(self.contract.inputs, inputs, strict=True)}
        prediction = self.predict(named)
        if self._left_out is not None:
            return (prediction,)
        if isinstance(self.focus, LayerwiseFocus):
            return prediction, *self.focus.state
        n = named[FOCUS_INDEX].shape[1]
        predictions = (prediction[:, :n], prediction[:, n:]) if self._component else (prediction,)
        affinity = (self.focus.affinity,) if AFFINITY in self.contract.has else ()
        changes = [change for found in self._changes for change in found.changes]
        return *predictions, *affinity, *self.focus.fresh, *changes

    def predict(self, named: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[B, s, w] of the tokens that go through the network, from the contract's inputs by name."""
        self.focus.begin(named)
        if self._left_out is not None:
            self._left_out.begin(named)
        tables = {name: getattr(self, buffer) for name, buffer in self._tables.items()}
        return self.backbone.forward(self.model, named, tables, self.focus)

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same call by tensor names, as a session sees it."""
        outputs = self(as_arguments(self.contract, inputs))
        return {spec.name: tensor for spec, tensor in zip(self.contract.outputs, outputs, strict=True)}


def _hooked(part: PartSite, focus: ComponentFocus, slot: int) -> list[Any]:
    """Hooks that give a module focus tokens alone, and its output the background's cached rows."""

    def narrow(_: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return focus.queries(arguments[0], text_first=part.text_first), *arguments[1:]

    def complete(_: Any, __: Any, computed: torch.Tensor) -> torch.Tensor:
        return focus.complete(slot, computed, text_first=part.text_first)

    hooks: list[Any] = [part.module.register_forward_pre_hook(narrow)] if part.narrows else []
    return [*hooks, part.module.register_forward_hook(complete)] if part.name else hooks


def as_arguments(contract: GraphContract, named: Mapping[str, Any]) -> tuple[Any, ...]:
    """Values by input name, in the contract's order."""
    return tuple(named[spec.name] for spec in contract.inputs)


def count_flops(step: FocusStep, n: int, *, observed: bool = False, counts: Sequence[int] | None = None) -> int:
    """FLOPs of one call with n focus tokens at the largest B, counted by torch's counter over the traced operators.

    Without the affinity, as all steps of a run but one, unless `observed`. For `counts` see `GraphContract.sizes`. Runs
    on the model's device; use a model on the meta device to count without computing.
    """
    device = next(step.parameters()).device
    if device.type == "meta":  # a video's cache is gigabytes that nobody would read
        sizes = step.contract.sizes(n, observed=observed, counts=counts)
        inputs = {
            spec.name: torch.empty(spec.sized(sizes), dtype=torch_dtype(spec.dtype), device=device)
            for spec in step.contract.inputs
        }
    else:
        inputs = example_inputs(step.contract, n, device=device, observed=observed, counts=counts)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        step.run(inputs)
    return counter.get_total_flops()
