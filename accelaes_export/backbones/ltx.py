"""LTX-Video: packed latent cells as tokens, self-attention with rotary positions, cross-attention to a masked text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.attention import projected, rotated_pairs, split_heads, text_attention, text_bias
from accelaes_export.backbones.base import AttentionSite, Backbone, Focus, PartSite
from accelaes_export.backbones.geometry import check_frames, check_sides
from accelaes_export.backbones.vae_latents import denormalised, unpacked
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.tensors import TensorSpec
from accelaes_export.errors import InputError

if TYPE_CHECKING:
    import torch

_FRAME_SCALE = 8  # video frames a latent frame, of all published autoencoders of the family
_FRAME_RATE = 25  # a second; the pipelines' default, which positions are scaled by
_UNBOUNDED = 2**16  # positions are computed: no table ends


class LTXBackbone(Backbone):
    """Adapter for diffusers' `LTXVideoTransformer3DModel`."""

    family = "ltx"
    class_name = "LTXVideoTransformer3DModel"
    pipelines = ("LTXPipeline",)
    signature = ("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask")
    guidance = Guidance(layout="uncond_cond")

    def latents(
        self, config: Mapping[str, Any], resolution: tuple[int, int], vae_scale: int, frames: int | None = None
    ) -> Latents:
        if (config["patch_size"], config["patch_size_t"]) != (1, 1):
            raise InputError(
                f"The config's patches are {config['patch_size_t']} x {config['patch_size']} cells; the family "
                f"{self.family} takes single ones."
            )
        check_sides(resolution, 1, vae_scale)
        return Latents(
            channels=config["in_channels"],
            out_channels=config["out_channels"] or config["in_channels"],
            height=resolution[0] // vae_scale,
            width=resolution[1] // vae_scale,
            patch=1,
            vae_scale=vae_scale,
            frames=check_frames(self.family, frames, 1, _UNBOUNDED),
            frame_scale=_FRAME_SCALE,
            packed=True,
        )

    def conditioning(self, config: Mapping[str, Any], dtype: str) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(name="encoder_hidden_states", dtype=dtype, shape=("B", "M", config["caption_channels"])),
            TensorSpec(name="encoder_attention_mask", dtype=dtype, shape=("B", "M"), kind="mask"),
        )

    def fixed(self, config: Mapping[str, Any], latents: Latents) -> dict[str, Any]:
        scale = (_FRAME_SCALE / _FRAME_RATE, latents.vae_scale, latents.vae_scale)
        sizes = {"num_frames": latents.frames, "height": latents.height, "width": latents.width}
        return {**sizes, "rope_interpolation_scale": scale}

    def text_conditioning(
        self, encoded: Mapping[str, torch.Tensor], config: Mapping[str, Any], length: int
    ) -> dict[str, torch.Tensor]:
        return {
            "encoder_hidden_states": encoded["text_encoder.last_hidden_state"],
            "encoder_attention_mask": encoded["tokenizer.attention_mask"],
        }

    def decoder_latents(self, latents: torch.Tensor, geometry: Latents, vae: Any) -> torch.Tensor:
        return denormalised(
            unpacked(latents, geometry), vae.latents_mean, vae.latents_std / vae.config["scaling_factor"]
        )

    def sites(self, model: Any) -> Sequence[AttentionSite | PartSite]:
        heads, head_dim = model.config.num_attention_heads, model.config.attention_head_dim
        width = heads * head_dim
        sites: list[AttentionSite | PartSite] = []
        for layer, block in enumerate(model.transformer_blocks):
            sites += [
                AttentionSite(block.attn1, layer, LTXSelfAttnProcessor, heads, head_dim),
                PartSite(block.attn1.to_out[0], layer, "attn", width),
                AttentionSite(
                    block.attn2, layer, LTXCrossAttnProcessor, heads, head_dim, cached=False, reads_text=True
                ),
                PartSite(block.attn2.to_out[0], layer, "cross", width),
                PartSite(block.ff, layer, "ff", width, narrows=True),
            ]
        return sites

    def tables(self, model: Any, latents: Latents) -> Mapping[str, torch.Tensor]:
        """Cosines and sines [N, D/2]: diffusers has each twice, for both numbers of a pair."""
        import torch

        cells = torch.empty(1, device="cpu")
        cos, sin = model.rope(cells, **self.fixed(model.config, latents))
        return {"cos": cos[0, :, ::2].contiguous(), "sin": sin[0, :, ::2].contiguous()}

    def forward(
        self, model: Any, inputs: Mapping[str, torch.Tensor], tables: Mapping[str, torch.Tensor], focus: Focus
    ) -> torch.Tensor:
        x = model.proj_in(focus.gather(inputs["hidden_states"]))
        temb, embedded = model.time_embed(inputs["timestep"], batch_size=x.shape[0], hidden_dtype=x.dtype)
        text = model.caption_projection(inputs["encoder_hidden_states"])
        bias = text_bias(inputs["encoder_attention_mask"])
        rotation = focus.rows(tables["cos"]), focus.rows(tables["sin"])
        for block in model.transformer_blocks:
            x = block(x, text, temb[:, None], rotation, bias)
        shift, scale = (model.scale_shift_table[None, None] + embedded[:, None, None]).unbind(2)
        prediction: torch.Tensor = model.proj_out(model.norm_out(x) * (1 + scale) + shift)
        return prediction

    def reference(self, model: Any, inputs: Mapping[str, torch.Tensor], latents: Latents) -> torch.Tensor:
        sample: torch.Tensor = model(**inputs, **self.fixed(model.config, latents), return_dict=False)[0]
        return sample


class LTXSelfAttnProcessor:
    """Attention among a video's tokens; positions turn all heads' numbers at once."""

    def __init__(self, focus: Focus, slot: int, layer: int) -> None:
        self.focus, self.slot = focus, slot

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # [B, s, D]
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,  # [B, s, D/2]
    ) -> torch.Tensor:
        assert image_rotary_emb is not None, "forward gives one"
        focus = self.focus
        asking, asked = ([narrow(table) for table in image_rotary_emb] for narrow in (focus.queries, focus.keys))
        q = _turned(attn.norm_q(attn.to_q(focus.queries(hidden_states))), asking)
        k = _turned(attn.norm_k(attn.to_k(focus.keys(hidden_states))), asked)
        q, k, v = (split_heads(x, attn.heads) for x in (q, k, attn.to_v(focus.keys(hidden_states))))
        return projected(attn, self.focus.attend(self.slot, q, k, v))


class LTXCrossAttnProcessor:
    """Attention of a video's tokens to the text."""

    def __init__(self, focus: Focus, slot: int, layer: int) -> None:
        self.focus, self.layer = focus, layer

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # [B, s, D]
        encoder_hidden_states: torch.Tensor,  # [B, M, D]
        attention_mask: torch.Tensor,  # [B, M], added to the scores
        image_rotary_emb: None = None,
    ) -> torch.Tensor:
        q = split_heads(attn.norm_q(attn.to_q(self.focus.queries(hidden_states))), attn.heads)
        k = split_heads(attn.norm_k(attn.to_k(encoder_hidden_states)), attn.heads)
        v = split_heads(attn.to_v(encoder_hidden_states), attn.heads)
        return projected(attn, text_attention(self.focus, self.layer, q, k, v, attention_mask))


def _turned(x: torch.Tensor, rotation: Sequence[torch.Tensor]) -> torch.Tensor:
    """[B, s, D] by its positions."""
    return rotated_pairs(x[:, None], *rotation)[:, 0]
