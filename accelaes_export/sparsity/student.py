"""The layer-wise run as a differentiable function of the choices behind it, in torch: what schedules are learned on.

Every part computes all tokens, and a mask says whose result is taken, so the end of the run has a gradient with respect
to every choice. What is drawn is what the engine draws, which computes the chosen tokens alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from accelaes_export.backbones import backbone_of
from accelaes_export.contract.manifest import Manifest
from accelaes_export.contract.tensors import HIDDEN_STATES, TIMESTEP, KeptPart
from accelaes_export.graph.focus_step import FocusStep
from accelaes_export.graph.layerwise import LayerwiseFocus, layerwise_contract
from accelaes_export.plugins.sparse_query_attention.torch_operator import concatenated_attention
from accelaes_export.policies.layer_schedule import counts_of
from accelaes_export.tuning.recording import Conditions, Schedule
from accelaes_export.tuning.walk import Moves

_CHOICE = "choice"


class MaskedFocus(LayerwiseFocus):
    """A layer-wise step of which every part computes all tokens, and takes those that a choice of candidates says.

    Its inputs have `choice` [parts, candidates] in place of places: what weight each candidate has, 1 for the one that
    is taken and 0 for the others; where these are a function of something, so is what is predicted.
    """

    operator = staticmethod(concatenated_attention)  # our own has no gradient

    def configure(self, labels: Sequence[str], shares: Sequence[float]) -> None:
        """Say which part has which row of a choice, and what its candidates stand for."""
        self._rows_of = {label: k for k, label in enumerate(labels)}
        self._counts = counts_of(shares, self._tokens)

    def _choose(self, part: KeptPart, score: torch.Tensor) -> None:
        order = torch.sort(score.detach(), dim=1, descending=True, stable=True).indices
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(self._tokens).expand_as(order))
        choice = self._inputs[_CHOICE][self._rows_of[part.label]]
        inside = torch.stack([(rank < count).to(choice.dtype) for count in self._counts])  # [S, B, N]
        self._mask = torch.einsum("s,sbn->bn", choice, inside)

    def _age(self, reused: torch.Tensor) -> torch.Tensor:
        return (reused + 1) * (1 - self._mask.detach())

    def queries(self, tokens: torch.Tensor, *, text_first: bool = False) -> torch.Tensor:
        return tokens

    def keys(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def _put(self, name: str, computed: torch.Tensor) -> torch.Tensor:
        own = name.startswith("cache.")
        mask = self._mask if own else self._mask.detach()
        mask = mask.reshape(*mask.shape, *[1] * (computed.ndim - 2))
        kept = self._inputs[name]
        # γ f(x) + (1 - γ) C(x); what ranks tokens isn't learned
        mixed = kept + mask * ((computed if own else computed.detach()) - kept)
        return mixed.to(kept.dtype)


class _MaskedStep(FocusStep):
    """A focus step with a MaskedFocus."""

    def _make_focus(self, affinity_layers: Sequence[int]) -> LayerwiseFocus:
        return MaskedFocus(self.contract, self.latents, self.backbone.family)


class Student:
    """A bundle's model, run layer-wise with gradients.

    Args:
        model: the diffusers transformer; its weights stay as they are.
        shares: what the candidates of a choice stand for, ascending.
        scale: of guidance.
    """

    def __init__(
        self, manifest: Manifest, model: Any, schedule: Schedule, shares: Sequence[float], scale: float
    ) -> None:
        geometry, backbone = manifest.geometry, backbone_of(manifest.family)
        self._schedule = schedule
        self._moves = Moves(manifest, schedule, scale)
        contract = layerwise_contract(geometry.contract)
        assert contract.own_parts is not None
        self._state = contract.own_parts.state
        self._step = _MaskedStep(model.float().requires_grad_(False), backbone, contract, geometry.latents, ()).eval()
        focus = self._step.focus
        assert isinstance(focus, MaskedFocus)
        focus.configure(contract.own_parts.labels, shares)
        self._focus = focus

    def close(self) -> None:
        """Give the model its own processors back."""
        self._step.restore()

    def run(self, conditions: Conditions, choices: torch.Tensor) -> torch.Tensor:
        """Latents [b, ...] at the end of a run; the first step computes all.

        Args:
            choices: [T - 1, parts, candidates] fp32, of the steps after the first.
        """
        whole = torch.zeros_like(choices[0])
        whole[:, -1] = 1.0
        sizes = {"B": conditions.images * (1 + conditions.paired)}
        state = [torch.zeros(spec.sized(sizes)) for spec in self._state]
        x = conditions.latents
        for i in range(self._schedule.steps):
            choice = whole if i == 0 else choices[i - 1]
            # Nothing of a step is kept for the way back but its state: it is computed again.
            x, *state = checkpoint(self._advance, i, conditions, x, choice, *state, use_reentrant=False)
        return x

    def _advance(
        self, i: int, conditions: Conditions, x: torch.Tensor, choice: torch.Tensor, *state: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Step i: the latents and the state after it."""
        both = torch.cat([x, x]) if conditions.paired else x
        named: dict[str, torch.Tensor] = {
            HIDDEN_STATES: both,
            TIMESTEP: torch.full((both.shape[0],), self._schedule.timesteps[i]),
            **{name: t.float() if t.is_floating_point() else t for name, t in conditions.conditioning.items()},
            **{spec.name: tensor for spec, tensor in zip(self._state, state, strict=True)},
            _CHOICE: choice,
        }
        rows = self._step.predict(named)
        return self._moves.moved(i, x, rows, paired=conditions.paired), *self._focus.state
