"""Qwen-Image: joint blocks with a stream each for text and image, both rotated, and text that may be padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.attention import rotated_pairs, split_heads, text_bias
from accelaes_export.backbones.base import AttentionSite, Backbone, Focus, PartSite
from accelaes_export.backbones.geometry import check_sides, no_frames
from accelaes_export.backbones.vae_latents import denormalised, unpacked
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.tensors import TensorSpec
from accelaes_export.errors import InputError

if TYPE_CHECKING:
    import torch

_PATCH = 2  # latent cells a side that the pipelines pack into one token
_POSITIONS = 4096  # of the model's rotation table, which reaches as far below 0
_LONGEST_TEXT = 1024  # tokens; the pipelines take no more
_OTHER_MODELS = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope", "guidance_embeds")


class QwenImageBackbone(Backbone):
    """Adapter for diffusers' `QwenImageTransformer2DModel`, as published for text to image.

    Text stands first in every sequence. Prompts of one length come without a mask, of several with one, which hides the
    padding from every query; a fixed window is filled up the same way.

    The pipelines scale a guided prediction to the conditional one's length, token by token. Skipped and sparse steps
    extrapolate the two halves before that, so this family alone isn't extrapolated as guided.
    """

    family = "qwen-image"
    class_name = "QwenImageTransformer2DModel"
    pipelines = ("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline")
    signature = (
        "hidden_states",
        "encoder_hidden_states",
        "encoder_hidden_states_mask",
        "timestep",
        "img_shapes",
        "guidance",
        "attention_kwargs",
    )
    guidance = Guidance(layout="separate", argument="true_cfg_scale", rescaled=True)
    timestep_limit = 1.0
    text_padded_to = 1  # to the longest prompt of a call
    encoded_text = _LONGEST_TEXT
    masks_padding = True
    cleaning = "other"  # a prompt is put into a template
    built_in = ("img_shapes", "txt_seq_lens")
    text_stream = True

    def latents(
        self, config: Mapping[str, Any], resolution: tuple[int, int], vae_scale: int, frames: int | None = None
    ) -> Latents:
        no_frames(self.family, frames)
        others = [name for name in _OTHER_MODELS if config.get(name)]
        if others:
            raise InputError(
                f"The transformer has {', '.join(others)}, as Qwen-Image's models for editing and layers have; only "
                "models for text to image can be built."
            )
        width, channels = config["in_channels"], config["out_channels"] or config["in_channels"]
        if config["patch_size"] != _PATCH or width != _PATCH**2 * channels:
            raise InputError(
                f"The transformer takes {width} numbers a token and predicts {channels} channels in patches of "
                f"{config['patch_size']}, but Qwen-Image predicts as many as it takes, in patches of {_PATCH}; "
                "give a transformer for text to image."
            )
        # The text's positions come after half a side.
        check_sides(resolution, _PATCH, vae_scale, 2 * (_POSITIONS - _LONGEST_TEXT))
        return Latents(
            channels=channels,
            out_channels=channels,
            height=resolution[0] // vae_scale,
            width=resolution[1] // vae_scale,
            patch=_PATCH,
            vae_scale=vae_scale,
            packed=True,
        )

    def conditioning(self, config: Mapping[str, Any], dtype: str) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(name="encoder_hidden_states", dtype=dtype, shape=("B", "M", config["joint_attention_dim"])),
            TensorSpec(name="encoder_hidden_states_mask", dtype=dtype, shape=("B", "M"), kind="mask", optional=True),
        )

    def text_conditioning(
        self, encoded: Mapping[str, torch.Tensor], config: Mapping[str, Any], length: int
    ) -> dict[str, torch.Tensor]:
        """Behind a prompt's end there are zeros, which the mask hides."""
        states, mask = encoded["text_encoder.hidden_states.-1"], encoded["tokenizer.attention_mask"]
        return {"encoder_hidden_states": states * mask.unsqueeze(-1), "encoder_hidden_states_mask": mask}

    def decoder_latents(self, latents: torch.Tensor, geometry: Latents, vae: Any) -> torch.Tensor:
        """A picture is a video of one frame to its VAE."""
        z = unpacked(latents, geometry).unsqueeze(2)
        return denormalised(z, vae.config["latents_mean"], vae.config["latents_std"])

    def sites(self, model: Any) -> Sequence[AttentionSite | PartSite]:
        heads, head_dim = model.config.num_attention_heads, model.config.attention_head_dim
        sites: list[AttentionSite | PartSite] = []
        for layer, block in enumerate(model.transformer_blocks):
            sites += [
                AttentionSite(block.attn, layer, QwenDoubleStreamAttnProcessor, heads, head_dim, reads_text=True),
                PartSite(block.attn.to_out[0], layer, "attn", model.inner_dim),
                PartSite(block.img_mlp, layer, "ff", model.inner_dim, narrows=True),
            ]
        return sites

    def tables(self, model: Any, latents: Latents) -> Mapping[str, torch.Tensor]:
        """Cosines and sines of the picture's grid, which has 0 in its middle, [N, hd/2], and of the longest text's
        positions, which come after it, [1024, hd/2]."""
        import torch

        own = model.pos_embed
        with torch.device("cpu"):  # the model's is no weight, and may have been made without numbers
            rope = type(own)(own.theta, own.axes_dim, own.scale_rope)
        image, text = rope([(1, *latents.grid)], device=torch.device("cpu"), max_txt_seq_len=_LONGEST_TEXT)
        parts = {"cos": image.real, "sin": image.imag, "text_cos": text.real, "text_sin": text.imag}
        return {name: part.contiguous() for name, part in parts.items()}

    def forward(
        self, model: Any, inputs: Mapping[str, torch.Tensor], tables: Mapping[str, torch.Tensor], focus: Focus
    ) -> torch.Tensor:
        import torch

        x = model.img_in(focus.gather(inputs["hidden_states"]))
        temb = model.time_text_embed(inputs["timestep"].to(x.dtype), x)
        text = model.txt_in(model.txt_norm(inputs["encoder_hidden_states"]))
        bias = text_bias(inputs["encoder_hidden_states_mask"])  # [B, M]
        # Gathered, not cut: a slice would bind the graph's M to the table's length.
        positions = torch.arange(text.shape[1], device=text.device)
        rotations = (
            (focus.rows(tables["cos"]), focus.rows(tables["sin"])),  # [B, s, hd/2]
            (tables["text_cos"][positions][None], tables["text_sin"][positions][None]),  # [1, M, hd/2]
        )
        for block in model.transformer_blocks:
            text, x = block(x, text, bias, temb, image_rotary_emb=rotations)
        prediction: torch.Tensor = model.proj_out(model.norm_out(x, temb))
        return prediction

    def reference(self, model: Any, inputs: Mapping[str, torch.Tensor], latents: Latents) -> torch.Tensor:
        shapes = [[(1, *latents.grid)]] * inputs["hidden_states"].shape[0]
        sample: torch.Tensor = model(**inputs, img_shapes=shapes, attention_kwargs={}, return_dict=False)[0]
        return sample


class QwenDoubleStreamAttnProcessor:
    """Joint attention over [text, image]; the outputs of image and text."""

    def __init__(self, focus: Focus, slot: int, layer: int) -> None:
        self.focus, self.slot, self.layer = focus, slot, layer

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # [B, s, D]
        encoder_hidden_states: torch.Tensor,  # [B, M, D]
        attention_mask: None,
        encoder_hidden_states_mask: torch.Tensor,  # [B, M], added to the scores
        image_rotary_emb: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]],  # cosines and sines, image and text
    ) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        focus, M, bias = self.focus, self.focus.text_tokens, encoder_hidden_states_mask
        rotation, text_rotation = image_rotary_emb
        own = [focus.queries(table) for table in rotation]
        q = rotated_pairs(attn.norm_q(split_heads(attn.to_q(focus.queries(hidden_states)), attn.heads)), *own)
        k = rotated_pairs(attn.norm_k(split_heads(attn.to_k(hidden_states), attn.heads)), *rotation)
        v = split_heads(attn.to_v(hidden_states), attn.heads)
        text_q = rotated_pairs(
            attn.norm_added_q(split_heads(attn.add_q_proj(encoder_hidden_states), attn.heads)), *text_rotation
        )
        text_k = rotated_pairs(
            attn.norm_added_k(split_heads(attn.add_k_proj(encoder_hidden_states), attn.heads)), *text_rotation
        )
        text_v = split_heads(attn.add_v_proj(encoder_hidden_states), attn.heads)
        q, k, v = (torch.cat(pair, dim=2) for pair in ((text_q, q), (text_k, k), (text_v, v)))
        focus.observe(self.layer, q[:, :, M:], k[:, :, :M], bias)
        out = focus.attend(self.slot, q, k, v, text=M, text_first=True, bias=bias).transpose(1, 2).flatten(2)
        image: torch.Tensor = attn.to_out[1](attn.to_out[0](out[:, M:].contiguous()))  # the last is dropout
        return image, attn.to_add_out(out[:, :M].contiguous())
