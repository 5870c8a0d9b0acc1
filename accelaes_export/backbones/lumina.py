"""Lumina-Next: self-attention with rotary positions beside gated cross-attention to Gemma's text, mixed before one
projection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.attention import normed, rotated_pairs, split_heads, text_attention, text_bias
from accelaes_export.backbones.base import AttentionSite, Backbone, Focus, PartSite
from accelaes_export.backbones.geometry import check_sides, no_frames
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.tensors import TensorSpec

if TYPE_CHECKING:
    import torch

_POSITIONS = 384  # a side of the rotation table that the pipeline makes at every step
_PIXELS = 8  # of a latent cell, a constant of the pipeline's, whatever the VAE


class LuminaBackbone(Backbone):
    """Adapter for diffusers' `LuminaNextDiT2DModel`.

    The rotation table changes during a run: above the default resolution the pipeline scales positions linearly first
    and by frequency (NTK) after its watershed. So the table is an input of the graph, [N, hd/2] cosines and sines.
    """

    family = "lumina"
    class_name = "LuminaNextDiT2DModel"
    pipelines = ("LuminaPipeline",)
    signature = (
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_mask",
        "image_rotary_emb",
        "cross_attention_kwargs",
    )
    guidance = Guidance(layout="cond_uncond", channels=3)
    masks_padding = True
    cleaning = "lower"
    timestep_limit = 1.0
    text_padded_to = 8
    block_lists = ("layers",)

    def latents(
        self, config: Mapping[str, Any], resolution: tuple[int, int], vae_scale: int, frames: int | None = None
    ) -> Latents:
        no_frames(self.family, frames)
        check_sides(resolution, config["patch_size"], vae_scale, _POSITIONS)
        return Latents(
            channels=config["in_channels"],
            out_channels=config["in_channels"],
            height=resolution[0] // vae_scale,
            width=resolution[1] // vae_scale,
            patch=config["patch_size"],
            vae_scale=vae_scale,
            sigma_channels=config["in_channels"] if config["learn_sigma"] else 0,
        )

    def text_conditioning(
        self, encoded: Mapping[str, torch.Tensor], config: Mapping[str, Any], length: int
    ) -> dict[str, torch.Tensor]:
        return {
            "encoder_hidden_states": encoded["text_encoder.hidden_states.-2"],
            "encoder_mask": encoded["tokenizer.attention_mask"],
        }

    def conditioning(self, config: Mapping[str, Any], dtype: str) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(name="encoder_hidden_states", dtype=dtype, shape=("B", "M", config["cross_attention_dim"])),
            TensorSpec(name="encoder_mask", dtype=dtype, shape=("B", "M"), kind="mask"),
        )

    def rotations(self, config: Mapping[str, Any], latents: Latents) -> tuple[TensorSpec, ...]:
        shape = (latents.tokens, _head_dim(config) // 2)
        return tuple(TensorSpec(name=name, dtype="fp32", shape=shape) for name in ("rope_cos", "rope_sin"))

    def fixed(self, config: Mapping[str, Any], latents: Latents) -> dict[str, Any]:
        # Proportional attention: the number of tokens that scores are scaled for when a picture has more or fewer.
        return {"base_sequence_length": _base_length(config)}

    def attributes(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"head_dim": _head_dim(config)}

    def sites(self, model: Any) -> Sequence[AttentionSite | PartSite]:
        heads = model.config.num_kv_heads or model.config.num_attention_heads
        width = model.config.hidden_size
        sites: list[AttentionSite | PartSite] = []
        for layer, block in enumerate(model.layers):
            sites += [
                AttentionSite(block.attn1, layer, SelfAttnProcessor, heads, model.head_dim),
                AttentionSite(
                    block.attn2, layer, CrossAttnProcessor, heads, model.head_dim, cached=False, reads_text=True
                ),
                PartSite(block.attn2.to_out[0], layer, "attn", width),  # of both attentions' sum
                PartSite(block.feed_forward, layer, "ff", width, narrows=True),
            ]
        return sites

    def forward(
        self, model: Any, inputs: Mapping[str, torch.Tensor], tables: Mapping[str, torch.Tensor], focus: Focus
    ) -> torch.Tensor:
        p = model.patch_size
        patches = inputs["hidden_states"].unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [B, C, rows, p, columns, p]
        x = model.patch_embedder.proj(focus.gather(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)))
        rotation = focus.rows(inputs["rope_cos"]), focus.rows(inputs["rope_sin"])
        text, mask = inputs["encoder_hidden_states"], inputs["encoder_mask"]
        temb = model.time_caption_embed(inputs["timestep"], text, mask)
        # Of all N tokens, not of those that are computed now.
        proportion = math.sqrt(math.log(inputs["rope_cos"].shape[0], _base_length(model.config)))
        bias = text_bias(mask)
        scaled = {"proportion": proportion}
        for block in model.layers:
            x = block(x, None, rotation, text, bias, temb, cross_attention_kwargs=scaled)
        tokens = model.norm_out(x, temb).unflatten(2, (p * p, -1))
        prediction: torch.Tensor = tokens[..., : model.in_channels].flatten(2)  # without the learned variance
        return prediction

    def reference(self, model: Any, inputs: Mapping[str, torch.Tensor], latents: Latents) -> torch.Tensor:
        import torch

        call = dict(inputs)
        table = torch.complex(call.pop("rope_cos"), call.pop("rope_sin"))
        sample: torch.Tensor = model(
            **call,
            image_rotary_emb=table.unflatten(0, latents.grid),
            cross_attention_kwargs=self.fixed(model.config, latents),
            return_dict=False,
        )[0]
        return sample


def _head_dim(config: Mapping[str, Any]) -> int:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return int(hidden // heads)


def _base_length(config: Mapping[str, Any]) -> int:
    """Tokens of a picture of the default size, as the pipeline counts them: with patches of 2."""
    return int(config["sample_size"] * _PIXELS // 16) ** 2


class SelfAttnProcessor:
    """Attention among image tokens; [B, n, H, hd], which the block mixes with the text's before it projects."""

    def __init__(self, focus: Focus, slot: int, layer: int) -> None:
        self.focus, self.slot = focus, slot

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # [B, s, D]
        encoder_hidden_states: torch.Tensor,  # the same
        attention_mask: None,
        query_rotary_emb: tuple[torch.Tensor, torch.Tensor],  # cosines and sines [B, s, hd/2]
        key_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        proportion: float,
    ) -> torch.Tensor:
        q = _queries(attn, hidden_states, query_rotary_emb, self.focus)
        own, rotation = self.focus.keys(hidden_states), (self.focus.keys(table) for table in key_rotary_emb)
        k = rotated_pairs(_heads(attn, normed(attn.norm_k, attn.to_k(own))), *rotation)
        v = _heads(attn, attn.to_v(own))
        return self.focus.attend(self.slot, q, k, v, scale=proportion * attn.scale).transpose(1, 2)


class CrossAttnProcessor:
    """Attention of image tokens to the text; [B, n, H, hd], which the block gates."""

    def __init__(self, focus: Focus, slot: int, layer: int) -> None:
        self.focus, self.layer = focus, layer

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # [B, s, D]
        encoder_hidden_states: torch.Tensor,  # [B, M, Dtext]
        attention_mask: torch.Tensor,  # [B, M], added to the scores
        query_rotary_emb: tuple[torch.Tensor, torch.Tensor],  # [B, s, hd/2]; the text has no positions
        key_rotary_emb: None,
        proportion: float,
    ) -> torch.Tensor:
        q = _queries(attn, hidden_states, query_rotary_emb, self.focus)
        k = _heads(attn, normed(attn.norm_k, attn.to_k(encoder_hidden_states)))
        v = _heads(attn, attn.to_v(encoder_hidden_states))
        return text_attention(self.focus, self.layer, q, k, v, attention_mask).transpose(1, 2)


def _queries(attn: Any, tokens: torch.Tensor, rotation: Sequence[torch.Tensor], focus: Focus) -> torch.Tensor:
    """Rotated queries of the tokens computed now, [B, H, n, hd]."""
    q = _heads(attn, normed(attn.norm_q, attn.to_q(focus.queries(tokens))))
    return rotated_pairs(q, *(focus.queries(table) for table in rotation))


def _heads(attn: Any, x: torch.Tensor) -> torch.Tensor:
    """[B, t, Hkv·hd] or [B, t, H·hd] to [B, ·, t, hd]: Lumina's norms come before, and go across the heads."""
    return split_heads(x, x.shape[2] * attn.heads // attn.inner_dim)
