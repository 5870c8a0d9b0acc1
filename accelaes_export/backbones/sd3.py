"""Stable Diffusion 3 and 3.5: MMDiT joint blocks, some of 3.5's with a second, image-only attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.base import AttentionSite, FocusGather
from accelaes_export.contract import CacheEntry, TensorSpec
from accelaes_export.errors import InputError
from accelaes_export.manifest import Latents

if TYPE_CHECKING:
    import torch


class SD3Backbone:
    """Adapter for diffusers' `SD3Transformer2DModel`."""

    family = "sd3"
    class_name = "SD3Transformer2DModel"
    pipelines: tuple[str, ...] = (
        "StableDiffusion3Pipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
    )
    signature: tuple[str, ...] = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    guidance = True
    spatial_cfg = False

    def latents(self, config: Mapping[str, Any], resolution: tuple[int, int], vae_scale: int) -> Latents:
        p, table = config["patch_size"], config["pos_embed_max_size"]
        for side, pixels in zip(("height", "width"), resolution, strict=True):
            multiple = p * vae_scale
            nearest = max(1, round(pixels / multiple)) * multiple
            if pixels <= 0 or pixels % multiple:
                raise InputError(
                    f"The {side} {pixels} doesn't fit: it must be a positive multiple of {multiple} "
                    f"(patch {p} x VAE scale {vae_scale}); the nearest is {nearest}."
                )
            if pixels // multiple > table:
                raise InputError(
                    f"The {side} {pixels} needs {pixels // multiple} positions, but this model's position table has "
                    f"{table}; the largest {side} is {table * multiple}."
                )
        return Latents(
            channels=config["in_channels"],
            out_channels=config["out_channels"] or config["in_channels"],
            height=resolution[0] // vae_scale,
            width=resolution[1] // vae_scale,
            patch=p,
            vae_scale=vae_scale,
        )

    def layers(self, config: Mapping[str, Any]) -> int:
        return config["num_layers"]

    def cache(self, config: Mapping[str, Any]) -> tuple[CacheEntry, ...]:
        dual = set(config.get("dual_attention_layers") or ())
        names = []
        for layer in range(config["num_layers"]):
            names += [f"cache.{layer}.k", f"cache.{layer}.v"]
            if layer in dual:
                names += [f"cache.{layer}.k2", f"cache.{layer}.v2"]
        heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
        return tuple(CacheEntry(name=name, heads=heads, head_dim=head_dim) for name in names)

    def conditioning(self, config: Mapping[str, Any], dtype: str) -> tuple[TensorSpec, ...]:
        text_width, pooled_width = config["joint_attention_dim"], config["pooled_projection_dim"]
        return (
            TensorSpec(name="encoder_hidden_states", dtype=dtype, shape=("B", "M", text_width)),
            TensorSpec(name="pooled_projections", dtype=dtype, shape=("B", pooled_width)),
        )

    def prediction_width(self, config: Mapping[str, Any]) -> int:
        return config["patch_size"] ** 2 * (config["out_channels"] or config["in_channels"])

    def attentions(self, model: Any) -> Sequence[AttentionSite]:
        sites = []
        for layer, block in enumerate(model.transformer_blocks):
            sites.append(AttentionSite(block.attn, layer, joint=True))
            if block.attn2 is not None:
                sites.append(AttentionSite(block.attn2, layer, joint=False))
        return sites

    def forward(
        self,
        model: Any,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: tuple[torch.Tensor, ...],
        focus: FocusGather,
    ) -> torch.Tensor:
        encoder_hidden_states, pooled_projections = conditioning
        # All N tokens are embedded before the gather: one small convolution, against index arithmetic on latents.
        x = focus.gather(model.pos_embed(hidden_states))
        temb = model.time_text_embed(timestep, pooled_projections)
        text = model.context_embedder(encoder_hidden_states)
        for block in model.transformer_blocks:
            text, x = block(
                hidden_states=x, encoder_hidden_states=text, temb=temb, joint_attention_kwargs={"focus": focus}
            )
        prediction: torch.Tensor = model.proj_out(model.norm_out(x, temb))
        return prediction
