"""What a DiT family's adapter says: only what is special about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from accelaes_export.contract import CacheEntry, TensorSpec
from accelaes_export.manifest import Latents

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class AttentionSite:
    """One attention module whose keys and values are cached.

    Attributes:
        module: the diffusers `Attention`.
        layer: its block's index.
        joint: whether text takes part (and an affinity can be read).
    """

    module: Any
    layer: int
    joint: bool


class FocusGather(Protocol):
    """The part of the focus step's state an adapter uses; blocks get it as the keyword argument `focus`."""

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, N, D] of all tokens to [B, n, D] of the focus tokens."""


class Backbone(Protocol):
    """An adapter from one diffusers transformer class to the focus step. Stateless.

    Models are `Any`: diffusers' modules declare none of their parts to a type checker.

    Attributes:
        family: its name in recipes and manifests.
        class_name: diffusers' class, as in the checkpoint's transformer/config.json.
        pipelines: diffusers pipelines the drop-in serves.
        signature: the transformer call's leading parameters, in diffusers' order.
        guidance: whether pipelines call it with guidance pairs.
        spatial_cfg: whether region-wise guidance is on as published.
    """

    family: str
    class_name: str
    pipelines: tuple[str, ...]
    signature: tuple[str, ...]
    guidance: bool
    spatial_cfg: bool

    def latents(self, config: Mapping[str, Any], resolution: tuple[int, int], vae_scale: int) -> Latents:
        """Geometry for a (height, width) in pixels; InputError where patch size or position table forbid it."""

    def layers(self, config: Mapping[str, Any]) -> int:
        """L, transformer blocks."""

    def cache(self, config: Mapping[str, Any]) -> tuple[CacheEntry, ...]:
        """The K and V entries of every attention, in slot order."""

    def conditioning(self, config: Mapping[str, Any], dtype: str) -> tuple[TensorSpec, ...]:
        """The inputs beside latents and timestep, with letters B and M in their shapes."""

    def prediction_width(self, config: Mapping[str, Any]) -> int:
        """p · p · C of one predicted token."""

    def attentions(self, model: Any) -> Sequence[AttentionSite]:
        """Every attention whose keys and values are cached, in slot order."""

    def forward(
        self,
        model: Any,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: tuple[torch.Tensor, ...],
        focus: FocusGather,
    ) -> torch.Tensor:
        """The transformer over the focus tokens: [B, n, p·p·C], before unpatchify."""
