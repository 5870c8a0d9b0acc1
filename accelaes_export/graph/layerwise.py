"""The layer-wise step: every part of every block computes tokens of its own choice, and as many as it is asked for.

All N tokens go through the network in their own order. A part ranks them, computes the first n and leaves the others
what it made of them when it last computed them (DiffSparse, Eq. 3-4): F(x_i) = γ_i f(x_i) + (1 - γ_i) C(x_i), C <- F.
n = N in every part is the dense model; a part with n = 0 isn't computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from accelaes_export.backbones.base import AttentionSite, Backbone, PartSite
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.tensors import (
    FOCUS_PREDICTION,
    HIDDEN_STATES,
    NEW,
    TIMESTEP,
    GraphContract,
    KeptPart,
    Layerwise,
    TensorSpec,
    keys_of,
    places,
)
from accelaes_export.errors import InputError
from accelaes_export.graph.focus import WholeFocus, attention_to_text
from accelaes_export.graph.ranking import TOCA, TocaScore, entropy, norm_score, toca_score, unlike_score
from accelaes_export.policies.layer_schedule import Ranking

Site = AttentionSite | PartSite


def layerwise_step(backbone: Backbone, model: Any, ranking: Ranking, latents: Latents, *, dtype: str) -> Layerwise:
    """A model's layer-wise step as its focus step's contract has it.

    Args:
        model: the transformer; on the meta device will do.

    Raises:
        InputError: a ranking by attention to the text, of a model that reads none.
    """
    sites = backbone.sites(model)
    parts = tuple(kept_parts(sites))
    reading = [site.layer for site in sites if isinstance(site, AttentionSite) and site.reads_text]
    if ranking == "toca" and not reading:
        raise InputError(
            f"ToCa ranks tokens by their attention to the text, and {backbone.family} reads none; "
            "give --layerwise similarity or norm."
        )
    width = next(site.width for site in sites if isinstance(site, PartSite) and site.name)
    N = latents.tokens
    state = [TensorSpec(name=f"cache.{part.label}", dtype=dtype, shape=("B", N, width)) for part in parts]
    if ranking == "similarity":
        state += [TensorSpec(name=f"input.{part.label}", dtype=dtype, shape=("B", N, width)) for part in parts]
    if ranking == "toca":
        state += [TensorSpec(name=f"reused.{part.label}", dtype="fp32", shape=("B", N), limit=4.0) for part in parts]
        state += [
            TensorSpec(name=f"entropy.{layer}", dtype="fp32", shape=("B", N), limit=4.0)
            for layer in sorted(set(reading))
        ]
    return Layerwise(ranking=ranking, parts=parts, state=tuple(state))


def layerwise_contract(contract: GraphContract) -> GraphContract:
    """The tensor table of the layer-wise step beside the focus step of `contract`."""
    assert contract.layerwise is not None, "the focus step's contract has it"
    parts, state, N = contract.layerwise.parts, contract.layerwise.state, contract.tokens
    kept = {HIDDEN_STATES, TIMESTEP, *contract.conditioning}
    prediction = next(spec for spec in contract.outputs if spec.name == FOCUS_PREDICTION)
    own = [TensorSpec(name=places(p.label), dtype="int64", shape=(f"n.{p.label}",)) for p in parts]
    own += [TensorSpec(name=keys_of(p.label), dtype="int64", shape=(f"k.{p.label}",)) for p in parts if p.keys]
    return contract.model_copy(
        update={
            "buckets": (N,),
            "inputs": (*(spec for spec in contract.inputs if spec.name in kept), *own, *state),
            "outputs": (
                prediction.model_copy(update={"shape": ("B", N, prediction.shape[2])}),
                *(spec.model_copy(update={"name": spec.name + NEW}) for spec in state),
            ),
            "cache": (),
            "ranges": (),
            "layerwise": None,
            "own_parts": contract.layerwise,
        }
    )


def kept_parts(sites: Sequence[Site]) -> list[KeptPart]:
    """A model's parts, in the order they are computed in."""
    return [part for part, _ in _by_part(sites)]


def _by_part(sites: Sequence[Site]) -> Iterator[tuple[KeptPart, list[Site]]]:
    """Each part with its sites: what ends at a named part site, and all that leads to it."""
    own: list[Site] = []
    for site in sites:
        own.append(site)
        if isinstance(site, PartSite) and site.name:
            attentions = [one for one in own if isinstance(one, AttentionSite) and one.cached]
            keys = bool(attentions) and not any(one.reads_text for one in attentions)
            yield KeptPart(layer=site.layer, name=site.name, keys=keys), own
            own = []


class LayerwiseFocus(WholeFocus):
    """What a layer-wise step carries through the blocks.

    Args:
        contract: the step's tensor table.
        latents: its geometry.
        family: whose published score ToCa's ranking takes.
    """

    def __init__(self, contract: GraphContract, latents: Latents, family: str) -> None:
        super().__init__(contract.text_input)
        assert contract.own_parts is not None, "the contract is a layer-wise step's"
        self._ranking = contract.own_parts.ranking
        self._state = tuple(spec.name for spec in contract.own_parts.state)
        self._tokens = contract.tokens
        self._grid = latents.grid
        self._toca = TOCA.get(family, TocaScore())

    def begin(self, inputs: Mapping[str, torch.Tensor]) -> None:
        super().begin(inputs)
        self._inputs = inputs
        self._new: dict[str, torch.Tensor] = {}
        self._part: KeptPart | None = None

    def enter(self, part: KeptPart, tokens: torch.Tensor) -> None:
        """Choose what a part computes of its input [B, N, D]; what belongs to one part enters it once."""
        if part == self._part:
            return
        self._part = part
        self._choose(part, self._score(part, tokens))
        if self._ranking == "similarity":
            self._new[f"input.{part.label}"] = self._put(f"input.{part.label}", self.queries(tokens))
        if self._ranking == "toca":
            self._new[f"reused.{part.label}"] = self._age(self._inputs[f"reused.{part.label}"])

    def _score(self, part: KeptPart, tokens: torch.Tensor) -> torch.Tensor:
        """[B, N]: the largest are computed first."""
        if self._ranking == "norm":
            return norm_score(tokens)
        if self._ranking == "similarity":
            return unlike_score(tokens, self._inputs[f"input.{part.label}"])
        # A block's parts before its attention to the text see the entropy of the step before.
        name = f"entropy.{part.layer}"
        known = self._new.get(name, self._inputs[name])
        return toca_score(known, self._inputs[f"reused.{part.label}"], self._grid, self._toca)

    def _choose(self, part: KeptPart, score: torch.Tensor) -> None:
        """Where the first n of the ranking lie among the rows of all tokens [B * N]."""
        order = torch.sort(score, dim=1, descending=True, stable=True).indices
        index = order.index_select(1, self._inputs[places(part.label)])  # [B, n]
        first = torch.arange(index.shape[0], device=index.device)[:, None] * self._tokens
        self._own = index + first

    def _age(self, reused: torch.Tensor) -> torch.Tensor:
        """Steps since each token was computed, after this one."""
        older, own = (reused + 1).flatten(), self._own.flatten()
        return older.index_put((own,), torch.zeros_like(own, dtype=older.dtype)).unflatten(0, reused.shape)

    def queries(self, tokens: torch.Tensor, *, text_first: bool = False) -> torch.Tensor:
        M = self.text_tokens if text_first else 0
        image = tokens[:, M:]
        if image.shape[0] != self._rows:  # a table that all rows share
            image = image.expand(self._rows, *image.shape[1:])
        own = image.flatten(0, 1).index_select(0, self._own.flatten())
        chosen = own.unflatten(0, self._own.shape)
        return torch.cat([tokens[:, :M], chosen], dim=1) if text_first else chosen

    def keys(self, tokens: torch.Tensor) -> torch.Tensor:
        assert self._part is not None, "a part is entered before its keys are made"
        return tokens.index_select(1, self._inputs[keys_of(self._part.label)]) if self._part.keys else tokens

    def complete(self, part: KeptPart, computed: torch.Tensor, *, text_first: bool = False) -> torch.Tensor:
        """A part's output [B, (M +) n, D] among what is cached of the other tokens: [B, (M +) N, D]."""
        M = self.text_tokens if text_first else 0
        merged = self._put(f"cache.{part.label}", computed[:, M:])
        self._new[f"cache.{part.label}"] = merged
        return torch.cat([computed[:, :M], merged], dim=1) if text_first else merged

    def observe(self, layer: int, q: torch.Tensor, text_k: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Take in how focused the computed tokens' attention to the text is, for ToCa's ranking."""
        if self._ranking == "toca":
            name = f"entropy.{layer}"
            self._new[name] = self._put(name, entropy(attention_to_text(q, text_k, bias)))

    def _put(self, name: str, computed: torch.Tensor) -> torch.Tensor:
        """The state called `name` [B, N, ...] with the part's tokens [B, n, ...] renewed."""
        kept = self._inputs[name]
        rows = kept.flatten(0, 1)
        renewed = rows.index_put((self._own.flatten(),), computed.flatten(0, 1).to(rows.dtype))
        return renewed.unflatten(0, kept.shape[:2])

    @property
    def state(self) -> list[torch.Tensor]:
        """After this step, in the contract's order."""
        return [self._new[name] for name in self._state]


def layerwise_hooks(sites: Sequence[Site], focus: LayerwiseFocus) -> list[Any]:
    """Hooks by which every part chooses tokens when it begins, and is completed from its cache where it ends."""
    hooks: list[Any] = []
    for part, own in _by_part(sites):
        last = own[-1]
        text_first = isinstance(last, PartSite) and last.text_first
        for site in own:
            hooks += _hooks(site, part, focus, text_first=text_first)
    return hooks


def _hooks(site: Site, part: KeptPart, focus: LayerwiseFocus, *, text_first: bool) -> list[Any]:
    def image(tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, focus.text_tokens :] if text_first else tokens

    def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        focus.enter(part, image(args[0] if args else kwargs[HIDDEN_STATES]))

    def narrow(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        focus.enter(part, image(args[0]))
        return focus.queries(args[0], text_first=text_first), *args[1:]

    def complete(_: Any, __: Any, computed: torch.Tensor) -> torch.Tensor:
        return focus.complete(part, computed, text_first=text_first)

    if isinstance(site, AttentionSite):
        return [site.module.register_forward_pre_hook(enter, with_kwargs=True)]
    hooks: list[Any] = [site.module.register_forward_pre_hook(narrow)] if site.narrows else []
    return [*hooks, site.module.register_forward_hook(complete)] if site.name else hooks
