"""Wan 2.1, text to video: self-attention over space and time, cross-attention to the text, three-axis rotations.

diffusers would keep the timestep embedder, the norms and the modulation tables in fp32. A bundle has one dtype for
all weights, so in a half-precision one they are rounded; the blocks still compute norms and gates in fp32, and the
rotation tables stay fp32 as in diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.attention import projected, rotated_pairs, split_heads, text_attention
from accelaes_export.backbones.base import AttentionSite, Backbone, Focus, PartSite
from accelaes_export.backbones.geometry import check_frames, check_sides
from accelaes_export.backbones.vae_latents import denormalised
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.tensors import TensorSpec
from accelaes_export.errors import InputError

if TYPE_CHECKING:
    import torch

_FRAME_SCALE = 4  # video frames per latent frame in Wan's VAE; the first latent frame is one video frame


class WanBackbone(Backbone):
    """Adapter for diffusers' `WanTransformer3DModel`, text to video."""

    family = "wan"
    class_name = "WanTransformer3DModel"
    pipelines = ("WanPipeline",)
    signature = ("hidden_states", "timestep", "encoder_hidden_states")
    guidance = Guidance(layout="separate")
    masks_padding = True
    cleaning = "other"  # HTML's escapes, runs of blanks
    block_lists = ("blocks",)

    def latents(
        self, config: Mapping[str, Any], resolution: tuple[int, int], vae_scale: int, frames: int | None = None
    ) -> Latents:
        patch_frames, patch, patch_width = config["patch_size"]
        if patch != patch_width:
            raise InputError(
                f"The config's patches are {patch} x {patch_width} cells; the family {self.family} takes square ones."
            )
        positions = config["rope_max_seq_len"]
        check_sides(resolution, patch, vae_scale, positions)
        return Latents(
            channels=config["in_channels"],
            out_channels=config["out_channels"] or config["in_channels"],
            height=resolution[0] // vae_scale,
            width=resolution[1] // vae_scale,
            patch=patch,
            vae_scale=vae_scale,
            frames=check_frames(self.family, frames, patch_frames, positions),
            patch_frames=patch_frames,
            frame_scale=_FRAME_SCALE,
        )

    def conditioning(self, config: Mapping[str, Any], dtype: str) -> tuple[TensorSpec, ...]:
        pictured = [name for name in ("image_dim", "added_kv_proj_dim") if config[name] is not None]
        if config["in_channels"] != (config["out_channels"] or config["in_channels"]):
            pictured.append("in_channels")
        if pictured:
            raise InputError(
                f"The config has {', '.join(f'{name} = {config[name]}' for name in pictured)}, so this Wan model "
                "starts from a picture; only text-to-video models can be built, such as Wan2.1-T2V-1.3B."
            )
        return (TensorSpec(name="encoder_hidden_states", dtype=dtype, shape=("B", "M", config["text_dim"])),)

    def text_conditioning(
        self, encoded: Mapping[str, torch.Tensor], config: Mapping[str, Any], length: int
    ) -> dict[str, torch.Tensor]:
        """Behind a prompt's end there are zeros."""
        states, mask = encoded["text_encoder.last_hidden_state"], encoded["tokenizer.attention_mask"]
        return {"encoder_hidden_states": states * mask.unsqueeze(-1)}

    def decoder_latents(self, latents: torch.Tensor, geometry: Latents, vae: Any) -> torch.Tensor:
        return denormalised(latents, vae.config["latents_mean"], vae.config["latents_std"])

    def sites(self, model: Any) -> Sequence[AttentionSite | PartSite]:
        heads, head_dim = model.config.num_attention_heads, model.config.attention_head_dim
        width = heads * head_dim
        sites: list[AttentionSite | PartSite] = []
        for layer, block in enumerate(model.blocks):
            sites += [
                AttentionSite(block.attn1, layer, WanSelfAttnProcessor, heads, head_dim),
                PartSite(block.attn1.to_out[0], layer, "attn", width),
                AttentionSite(
                    block.attn2, layer, WanCrossAttnProcessor, heads, head_dim, cached=False, reads_text=True
                ),
                PartSite(block.attn2.to_out[0], layer, "cross", width),
                PartSite(block.ffn, layer, "ff", width, narrows=True),
            ]
        return sites

    def tables(self, model: Any, latents: Latents) -> Mapping[str, torch.Tensor]:
        """`cos`, `sin`: [N, hd/2] fp32, a third of the angles each for frame, row and column."""
        import torch

        config = model.config
        # A rotation module of its own: the model's buffers have the bundle's dtype.
        rope = type(model.rope)(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
        cos, sin = rope(torch.empty(1, *latents.shape, device="meta"))  # [1, N, 1, hd]; only the shape is read
        # Every angle is there twice, once for each number of the pair that it rotates.
        return {"cos": cos[0, :, 0, 0::2].contiguous(), "sin": sin[0, :, 0, 1::2].contiguous()}

    def forward(
        self, model: Any, inputs: Mapping[str, torch.Tensor], tables: Mapping[str, torch.Tensor], focus: Focus
    ) -> torch.Tensor:
        x = focus.gather(model.patch_embedding(inputs["hidden_states"]).flatten(2).transpose(1, 2))
        rotations = focus.rows(tables["cos"]), focus.rows(tables["sin"])
        temb, modulation, text, _ = model.condition_embedder(inputs["timestep"], inputs["encoder_hidden_states"])
        modulation = modulation.unflatten(1, (6, -1))
        for block in model.blocks:
            x = block(x, text, modulation, rotations)
        shift, scale = (model.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        x = (model.norm_out(x.float()) * (1 + scale) + shift).type_as(x)
        prediction: torch.Tensor = model.proj_out(x)
        return prediction


class WanSelfAttnProcessor:
    """`attn1`: focus tokens' queries over the keys of the whole video."""

    def __init__(self, focus: Focus, slot: int, layer: int) -> None:
        self.focus, self.slot = focus, slot

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # [B, s, D]
        encoder_hidden_states: None,
        attention_mask: None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor],  # cos and sin [B, s, hd/2]
    ) -> torch.Tensor:
        cos, sin = rotary_emb
        # The norms go over all heads at once, so the heads are split behind them.
        q = split_heads(attn.norm_q(attn.to_q(self.focus.queries(hidden_states))), attn.heads)
        own = self.focus.keys(hidden_states)
        k = split_heads(attn.norm_k(attn.to_k(own)), attn.heads)
        v = split_heads(attn.to_v(own), attn.heads)
        q = rotated_pairs(q, self.focus.queries(cos), self.focus.queries(sin))
        k = rotated_pairs(k, self.focus.keys(cos), self.focus.keys(sin))
        out = self.focus.attend(self.slot, q, k, v)
        return projected(attn, out)


class WanCrossAttnProcessor:
    """`attn2`: focus tokens' queries over the text, which is never masked: its padding is zeros before embedding."""

    def __init__(self, focus: Focus, slot: int, layer: int) -> None:
        self.focus, self.layer = focus, layer

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # [B, s, D]
        encoder_hidden_states: torch.Tensor,  # [B, M, D]
        attention_mask: None,
        rotary_emb: None,
    ) -> torch.Tensor:
        q = split_heads(attn.norm_q(attn.to_q(self.focus.queries(hidden_states))), attn.heads)
        k = split_heads(attn.norm_k(attn.to_k(encoder_hidden_states)), attn.heads)
        v = split_heads(attn.to_v(encoder_hidden_states), attn.heads)
        return projected(attn, text_attention(self.focus, self.layer, q, k, v))
