"""A family at a size a test can afford: real classes, random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from accelaes_export.backbones import Backbone, backbone_of
from accelaes_export.backbones.checkpoints import complete_config, empty_transformer, random_transformer
from accelaes_export.contract.geometry import Latents
from accelaes_export.graph.focus_step import FocusStep
from accelaes_export.graph.tensors import affinity_layers, graph_contract
from accelaes_export.policies.layer_schedule import Ranking


@dataclass(frozen=True)
class Family:
    """A family's tiny model.

    Attributes:
        name: of the family.
        config: of its diffusers class: 2 or 3 blocks, heads of at least 16.
        resolutions: picture sizes that fit, in pixels, one of them not square.
        vae_scale, frames, text_tokens: as in a recipe.
        variants: config changes every test runs with, by what they mean.
        variant_frames: latent frames of variants that differ in them.
        text_first: whether the text stands before the image tokens in a joint attention.
    """

    name: str
    config: Mapping[str, Any]
    resolutions: tuple[tuple[int, int], ...]
    vae_scale: int = 8
    frames: int | None = None
    text_tokens: int = 9
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"plain": {}})
    text_first: bool = False
    variant_frames: Mapping[str, int] = field(default_factory=dict)

    @property
    def backbone(self) -> Backbone:
        return backbone_of(self.name)

    def model(self, variant: str, seed: int = 0) -> torch.nn.Module:
        """The diffusers model, fp32, on the CPU."""
        return random_transformer(self.backbone, self.full_config(variant), "fp32", seed)

    def full_config(self, variant: str) -> dict[str, Any]:
        return complete_config(self.backbone, {**self.config, **self.variants[variant]})

    def latents(self, variant: str, resolution: tuple[int, int]) -> Latents:
        frames = self.variant_frames.get(variant, self.frames)
        return self.backbone.latents(self.full_config(variant), resolution, self.vae_scale, frames)

    def step(
        self,
        model: Any,
        variant: str,
        *,
        resolution: tuple[int, int] | None = None,
        form: str = "token",
        batch: int = 1,
        dtype: str = "fp32",
        dynamic_text: bool = True,
        fractions: tuple[float, ...] = (0.25, 0.5, 0.75),
        ranges: tuple[tuple[int, int], ...] = (),
        ranking: Ranking | None = None,
    ) -> FocusStep:
        """The focus step of `model`, every layer's affinity in it."""
        latents = self.latents(variant, resolution or self.resolutions[0])
        shapes = empty_transformer(self.backbone, self.full_config(variant))
        contract = graph_contract(
            self.backbone,
            shapes,
            latents,
            form=form,
            dtype=dtype,
            batch=batch,
            fractions=fractions,
            text_tokens=self.text_tokens,
            dynamic_text=dynamic_text,
            ranges=ranges,
            ranking=ranking,
        )
        layers = affinity_layers(self.backbone, shapes, 1)
        return FocusStep(model, self.backbone, contract, latents, layers).eval()
