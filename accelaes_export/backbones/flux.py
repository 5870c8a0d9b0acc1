"""FLUX.1 dev and schnell: joint blocks with a stream each for text and image, then blocks with one stream for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.attention import rotated_pairs, split_heads
from accelaes_export.backbones.base import AttentionSite, Backbone, Focus, PartSite
from accelaes_export.backbones.geometry import check_sides, no_frames
from accelaes_export.backbones.vae_latents import unpacked
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.tensors import TensorSpec
from accelaes_export.errors import InputError

if TYPE_CHECKING:
    import torch

_PATCH = 2  # latent cells a side that the pipelines pack into one token; the model itself has patches of 1
# Of random inputs. The model takes the sine of 1000 times this, which fp32 rounds to about 1e-4 from here on.
_LARGEST_GUIDANCE = 4.0


class FluxBackbone(Backbone):
    """Adapter for diffusers' `FluxTransformer2DModel`.

    Layers are numbered on from the double blocks through the single ones. Text comes first in every sequence.
    """

    family = "flux"
    class_name = "FluxTransformer2DModel"
    pipelines = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
    signature = (
        "hidden_states",
        "encoder_hidden_states",
        "pooled_projections",
        "timestep",
        "img_ids",
        "txt_ids",
        "guidance",
    )
    guidance = Guidance(layout="separate")  # true_cfg_scale; the distilled guidance is an input like any other
    timestep_limit = 1.0
    built_in = ("img_ids", "txt_ids")
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    text_stream = True

    def latents(
        self, config: Mapping[str, Any], resolution: tuple[int, int], vae_scale: int, frames: int | None = None
    ) -> Latents:
        no_frames(self.family, frames)
        width, out_width = config["in_channels"], config["out_channels"] or config["in_channels"]
        if config["patch_size"] != 1 or width != out_width or width % _PATCH**2:
            raise InputError(
                f"The transformer takes {width} numbers a token and predicts {out_width} in patches of "
                f"{config['patch_size']}, but FLUX text-to-image has as many in as out and patches of 1; "
                "Fill, Canny and Depth models can't be built."
            )
        check_sides(resolution, _PATCH, vae_scale)
        return Latents(
            channels=width // _PATCH**2,
            out_channels=width // _PATCH**2,
            height=resolution[0] // vae_scale,
            width=resolution[1] // vae_scale,
            patch=_PATCH,
            vae_scale=vae_scale,
            packed=True,
        )

    def conditioning(self, config: Mapping[str, Any], dtype: str) -> tuple[TensorSpec, ...]:
        text_width, pooled_width = config["joint_attention_dim"], config["pooled_projection_dim"]
        # fp32 as the timestep, and for the same reason: the model multiplies it by 1000.
        scale = TensorSpec(name="guidance", dtype="fp32", shape=("B",), limit=_LARGEST_GUIDANCE)
        return (
            TensorSpec(name="encoder_hidden_states", dtype=dtype, shape=("B", "M", text_width)),
            TensorSpec(name="pooled_projections", dtype=dtype, shape=("B", pooled_width)),
            *([scale] if config["guidance_embeds"] else []),
        )

    def text_conditioning(
        self, encoded: Mapping[str, torch.Tensor], config: Mapping[str, Any], length: int
    ) -> dict[str, torch.Tensor]:
        return {
            "encoder_hidden_states": encoded["text_encoder_2.last_hidden_state"],
            "pooled_projections": encoded["text_encoder.pooler_output"],
        }

    def decoder_latents(self, latents: torch.Tensor, geometry: Latents, vae: Any) -> torch.Tensor:
        return super().decoder_latents(unpacked(latents, geometry), geometry, vae)

    def sites(self, model: Any) -> Sequence[AttentionSite | PartSite]:
        heads, head_dim = model.config.num_attention_heads, model.config.attention_head_dim
        width, double = model.inner_dim, len(model.transformer_blocks)
        sites: list[AttentionSite | PartSite] = []
        for layer, block in enumerate(model.transformer_blocks):
            sites += [
                AttentionSite(block.attn, layer, FluxAttnProcessor, heads, head_dim, reads_text=True),
                PartSite(block.attn.to_out[0], layer, "attn", width),
                PartSite(block.ff, layer, "ff", width, narrows=True),
            ]
        for layer, block in enumerate(model.single_transformer_blocks, start=double):
            mlp_width = block.proj_mlp.out_features
            sites += [
                AttentionSite(block.attn, layer, FluxAttnProcessor, heads, head_dim, reads_text=True),
                # One projection ends both parts of a single block, so their sum is what is cached.
                PartSite(block.proj_mlp, layer, "", mlp_width, narrows=True, text_first=True),
                PartSite(block.proj_out, layer, "out", width, text_first=True),
            ]
        return sites

    def tables(self, model: Any, latents: Latents) -> Mapping[str, torch.Tensor]:
        """Cosines and sines [N, hd/2] of the picture's grid: diffusers has each twice, for both numbers of a pair."""
        cos, sin = model.pos_embed(_image_ids(latents))
        return {"cos": cos[:, ::2].contiguous(), "sin": sin[:, ::2].contiguous()}

    def forward(
        self, model: Any, inputs: Mapping[str, torch.Tensor], tables: Mapping[str, torch.Tensor], focus: Focus
    ) -> torch.Tensor:
        import torch

        x = model.x_embedder(focus.gather(inputs["hidden_states"]))
        scales = [inputs[name].to(x.dtype) * 1000 for name in ("timestep", "guidance") if name in inputs]
        temb = model.time_text_embed(*scales, inputs["pooled_projections"])
        text = model.context_embedder(inputs["encoder_hidden_states"])
        cos, sin = focus.rows(tables["cos"]), focus.rows(tables["sin"])  # [B, s, hd]
        # Text stands at the origin, where nothing is turned.
        still = cos.new_zeros((text.shape[0], text.shape[1], cos.shape[2]))
        rotation = torch.cat([still + 1, cos], dim=1), torch.cat([still, sin], dim=1)  # [B, M + s, hd/2]
        for block in (*model.transformer_blocks, *model.single_transformer_blocks):
            text, x = block(hidden_states=x, encoder_hidden_states=text, temb=temb, image_rotary_emb=rotation)
        prediction: torch.Tensor = model.proj_out(model.norm_out(x, temb))
        return prediction

    def reference(self, model: Any, inputs: Mapping[str, torch.Tensor], latents: Latents) -> torch.Tensor:
        import torch

        image_ids = _image_ids(latents).to(inputs["hidden_states"].device)
        text_ids = torch.zeros(inputs["encoder_hidden_states"].shape[1], 3, device=image_ids.device)
        sample: torch.Tensor = model(**inputs, img_ids=image_ids, txt_ids=text_ids, return_dict=False)[0]
        return sample


class FluxAttnProcessor:
    """FLUX attention over [text, image]: of two streams in double blocks, of one that holds both in single blocks."""

    def __init__(self, focus: Focus, slot: int, layer: int) -> None:
        self.focus, self.slot, self.layer = focus, slot, layer

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # [B, s, D]; without a text stream [B, M + s, D]
        encoder_hidden_states: torch.Tensor | None = None,  # [B, M, D]
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,  # [B, M + s, hd/2], cosines and sines
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        import torch

        focus, M = self.focus, self.focus.text_tokens
        single = encoder_hidden_states is None
        q = attn.norm_q(split_heads(attn.to_q(focus.queries(hidden_states, text_first=single)), attn.heads))
        k = attn.norm_k(split_heads(attn.to_k(hidden_states), attn.heads))
        v = split_heads(attn.to_v(hidden_states), attn.heads)
        if not single:
            text_q = attn.norm_added_q(split_heads(attn.add_q_proj(encoder_hidden_states), attn.heads))
            text_k = attn.norm_added_k(split_heads(attn.add_k_proj(encoder_hidden_states), attn.heads))
            text_v = split_heads(attn.add_v_proj(encoder_hidden_states), attn.heads)
            q, k, v = (torch.cat(pair, dim=2) for pair in ((text_q, q), (text_k, k), (text_v, v)))
        assert image_rotary_emb is not None, "forward gives one"
        cos, sin = image_rotary_emb
        q = rotated_pairs(q, focus.queries(cos, text_first=True), focus.queries(sin, text_first=True))
        k = rotated_pairs(k, cos, sin)
        focus.observe(self.layer, q[:, :, M:], k[:, :, :M])
        out = focus.attend(self.slot, q, k, v, text=M, text_first=True).transpose(1, 2).flatten(2)
        if single:
            return out
        image: torch.Tensor = attn.to_out[1](attn.to_out[0](out[:, M:].contiguous()))  # the last is dropout
        return image, attn.to_add_out(out[:, :M].contiguous())


def _image_ids(latents: Latents) -> torch.Tensor:
    """[N, 3] fp32: 0, row and column of every token, as the pipelines number them."""
    import torch

    rows, columns = (torch.arange(size, dtype=torch.float32, device="cpu") for size in latents.grid)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)
