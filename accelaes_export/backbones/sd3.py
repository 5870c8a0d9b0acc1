"""Stable Diffusion 3 and 3.5: MMDiT joint blocks, some of 3.5's with a second, image-only attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.attention import normed, projected, split_heads
from accelaes_export.backbones.base import AttentionSite, Backbone, Focus, PartSite
from accelaes_export.backbones.geometry import check_sides, no_frames
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.tensors import TensorSpec

if TYPE_CHECKING:
    import torch


class SD3Backbone(Backbone):
    """Adapter for diffusers' `SD3Transformer2DModel`."""

    family = "sd3"
    class_name = "SD3Transformer2DModel"
    pipelines = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")
    signature = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    guidance = Guidance(layout="uncond_cond")
    text_stream = True

    def latents(
        self, config: Mapping[str, Any], resolution: tuple[int, int], vae_scale: int, frames: int | None = None
    ) -> Latents:
        no_frames(self.family, frames)
        check_sides(resolution, config["patch_size"], vae_scale, config["pos_embed_max_size"])
        return Latents(
            channels=config["in_channels"],
            out_channels=config["out_channels"] or config["in_channels"],
            height=resolution[0] // vae_scale,
            width=resolution[1] // vae_scale,
            patch=config["patch_size"],
            vae_scale=vae_scale,
        )

    def conditioning(self, config: Mapping[str, Any], dtype: str) -> tuple[TensorSpec, ...]:
        text_width, pooled_width = config["joint_attention_dim"], config["pooled_projection_dim"]
        return (
            TensorSpec(name="encoder_hidden_states", dtype=dtype, shape=("B", "M", text_width)),
            TensorSpec(name="pooled_projections", dtype=dtype, shape=("B", pooled_width)),
        )

    def text_conditioning(
        self, encoded: Mapping[str, torch.Tensor], config: Mapping[str, Any], length: int
    ) -> dict[str, torch.Tensor]:
        """Both CLIPs share positions, side by side and padded to the width of T5, whose positions come behind."""
        import torch

        first, second = "text_encoder.", "text_encoder_2."
        clip = torch.cat([encoded[f"{name}hidden_states.-2"] for name in (first, second)], dim=-1)
        clip = torch.nn.functional.pad(clip, (0, config["joint_attention_dim"] - clip.shape[-1]))
        t5 = encoded.get("text_encoder_3.last_hidden_state")
        if t5 is None:  # as the pipelines do without it
            t5 = clip.new_zeros(clip.shape[0], length, config["joint_attention_dim"])
        return {
            "encoder_hidden_states": torch.cat([clip, t5], dim=1),
            "pooled_projections": torch.cat([encoded[f"{name}text_embeds"] for name in (first, second)], dim=-1),
        }

    def sites(self, model: Any) -> Sequence[AttentionSite | PartSite]:
        heads, head_dim = model.config.num_attention_heads, model.config.attention_head_dim
        width = model.inner_dim
        sites: list[AttentionSite | PartSite] = []
        for layer, block in enumerate(model.transformer_blocks):
            sites += [
                AttentionSite(block.attn, layer, JointAttnProcessor, heads, head_dim, reads_text=True),
                PartSite(block.attn.to_out[0], layer, "attn", width),
                PartSite(block.ff, layer, "ff", width, narrows=True),
            ]
            if block.attn2 is not None:
                sites += [
                    AttentionSite(block.attn2, layer, JointAttnProcessor, heads, head_dim, suffix="2"),
                    PartSite(block.attn2.to_out[0], layer, "attn2", width),
                ]
        return sites

    def forward(
        self, model: Any, inputs: Mapping[str, torch.Tensor], tables: Mapping[str, torch.Tensor], focus: Focus
    ) -> torch.Tensor:
        # All N tokens are embedded before the gather: one small convolution, against index arithmetic on latents.
        x = focus.gather(model.pos_embed(inputs["hidden_states"]))
        temb = model.time_text_embed(inputs["timestep"], inputs["pooled_projections"])
        text = model.context_embedder(inputs["encoder_hidden_states"])
        for block in model.transformer_blocks:
            text, x = block(hidden_states=x, encoder_hidden_states=text, temb=temb)
        prediction: torch.Tensor = model.proj_out(model.norm_out(x, temb))
        return prediction


class JointAttnProcessor:
    """MMDiT attention: image and text attend together; dual-attention blocks' image-only one too.

    The text stream is optional: without `encoder_hidden_states` this is plain self-attention over image tokens.
    """

    def __init__(self, focus: Focus, slot: int, layer: int) -> None:
        self.focus, self.slot, self.layer = focus, slot, layer

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # [B, s, D]
        encoder_hidden_states: torch.Tensor | None = None,  # [B, M, D]
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        import torch

        q = normed(attn.norm_q, split_heads(attn.to_q(self.focus.queries(hidden_states)), attn.heads))
        own = self.focus.keys(hidden_states)
        k = normed(attn.norm_k, split_heads(attn.to_k(own), attn.heads))
        v = split_heads(attn.to_v(own), attn.heads)
        if encoder_hidden_states is None:
            return projected(attn, self.focus.attend(self.slot, q, k, v))

        text_q = normed(attn.norm_added_q, split_heads(attn.add_q_proj(encoder_hidden_states), attn.heads))
        text_k = normed(attn.norm_added_k, split_heads(attn.add_k_proj(encoder_hidden_states), attn.heads))
        text_v = split_heads(attn.add_v_proj(encoder_hidden_states), attn.heads)
        self.focus.observe(self.layer, q, text_k)
        n, M = q.shape[2], text_q.shape[2]
        # The image comes before the text, as in diffusers, so that n = N is the same sum to the last bit.
        q = torch.cat([q, text_q], dim=2)
        k = torch.cat([k, text_k], dim=2)
        v = torch.cat([v, text_v], dim=2)
        out = self.focus.attend(self.slot, q, k, v, text=M)
        image, text = out[:, :, :n], out[:, :, n:].transpose(1, 2).flatten(2)
        return projected(attn, image), text if attn.context_pre_only else attn.to_add_out(text)
