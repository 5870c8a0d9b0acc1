"""What families made of diffusers' `BasicTransformerBlock` share: sine-cosine positions, self-attention and, where
there is text, cross-attention to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.attention import normed, projected, split_heads, text_attention
from accelaes_export.backbones.base import AttentionSite, Backbone, Focus, PartSite
from accelaes_export.backbones.geometry import check_sides, no_frames
from accelaes_export.contract.geometry import Latents

if TYPE_CHECKING:
    import torch

_POSITIONS = "positions"  # [N, D]


class BasicBlocksBackbone(Backbone):
    """Geometry, positions and sites of a model with `pos_embed` and a list of basic blocks."""

    def latents(
        self, config: Mapping[str, Any], resolution: tuple[int, int], vae_scale: int, frames: int | None = None
    ) -> Latents:
        no_frames(self.family, frames)
        # No table ends: positions are stretched over whatever size there is.
        check_sides(resolution, config["patch_size"], vae_scale)
        channels = config["in_channels"]
        predicted = config["out_channels"] or channels
        learns_sigma = predicted == 2 * channels
        return Latents(
            channels=channels,
            out_channels=channels if learns_sigma else predicted,
            height=resolution[0] // vae_scale,
            width=resolution[1] // vae_scale,
            patch=config["patch_size"],
            vae_scale=vae_scale,
            sigma_channels=channels if learns_sigma else 0,
        )

    def sites(self, model: Any) -> Sequence[AttentionSite | PartSite]:
        heads, head_dim = model.config.num_attention_heads, model.config.attention_head_dim
        width = model.inner_dim
        sites: list[AttentionSite | PartSite] = []
        for layer, block in enumerate(model.transformer_blocks):
            sites += [
                AttentionSite(block.attn1, layer, SelfAttnProcessor, heads, head_dim),
                PartSite(block.attn1.to_out[0], layer, "attn", width),
            ]
            if block.attn2 is not None:
                sites += [
                    AttentionSite(
                        block.attn2, layer, CrossAttnProcessor, heads, head_dim, cached=False, reads_text=True
                    ),
                    PartSite(block.attn2.to_out[0], layer, "cross", width),
                ]
            sites.append(PartSite(block.ff, layer, "ff", width, narrows=True))
        return sites

    def tables(self, model: Any, latents: Latents) -> Mapping[str, torch.Tensor]:
        from diffusers.models.embeddings import get_2d_sincos_pos_embed

        own = model.pos_embed
        positions = get_2d_sincos_pos_embed(
            model.inner_dim,
            latents.grid,
            base_size=own.base_size,
            interpolation_scale=own.interpolation_scale,
            output_type="pt",
        )
        return {_POSITIONS: positions.float()}

    @staticmethod
    def _embedded(model: Any, latents: torch.Tensor, tables: Mapping[str, torch.Tensor], focus: Focus) -> torch.Tensor:
        """[B, C, Hl, Wl] to focus tokens [B, s, D] with their positions added."""
        patches = model.pos_embed.proj(latents).flatten(2).transpose(1, 2)
        return (focus.gather(patches) + focus.rows(tables[_POSITIONS])).to(patches.dtype)

    @staticmethod
    def _prediction(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        """[B, s, p·p·out_channels] to [B, s, w]: without the learned variance, if there is one."""
        channels: int = model.config.in_channels
        if model.out_channels != 2 * channels:
            return tokens
        return tokens.unflatten(2, (-1, 2 * channels))[..., :channels].flatten(2)


class SelfAttnProcessor:
    """Attention among image tokens."""

    def __init__(self, focus: Focus, slot: int, layer: int) -> None:
        self.focus, self.slot = focus, slot

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # [B, s, D]
        encoder_hidden_states: None = None,
        attention_mask: None = None,
    ) -> torch.Tensor:
        q = normed(attn.norm_q, split_heads(attn.to_q(self.focus.queries(hidden_states)), attn.heads))
        own = self.focus.keys(hidden_states)
        k = normed(attn.norm_k, split_heads(attn.to_k(own), attn.heads))
        v = split_heads(attn.to_v(own), attn.heads)
        return projected(attn, self.focus.attend(self.slot, q, k, v))


class CrossAttnProcessor:
    """Attention of image tokens to the text."""

    def __init__(self, focus: Focus, slot: int, layer: int) -> None:
        self.focus, self.layer = focus, layer

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # [B, s, D]
        encoder_hidden_states: torch.Tensor,  # [B, M, D]
        attention_mask: torch.Tensor,  # [B, M], added to the scores
    ) -> torch.Tensor:
        q = normed(attn.norm_q, split_heads(attn.to_q(self.focus.queries(hidden_states)), attn.heads))
        k = normed(attn.norm_k, split_heads(attn.to_k(encoder_hidden_states), attn.heads))
        v = split_heads(attn.to_v(encoder_hidden_states), attn.heads)
        return projected(attn, text_attention(self.focus, self.layer, q, k, v, attention_mask))
