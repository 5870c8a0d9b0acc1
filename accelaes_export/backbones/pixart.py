"""PixArt-Alpha and PixArt-Sigma: cross-attention to T5's text, one modulation of the timestep for all blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.attention import text_bias
from accelaes_export.backbones.base import Focus
from accelaes_export.backbones.basic_blocks import BasicBlocksBackbone
from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.tensors import TensorSpec
from accelaes_export.errors import InputError

if TYPE_CHECKING:
    import torch

_SIZE = ("resolution", "aspect_ratio")  # what the call has in `added_cond_kwargs`


class PixArtBackbone(BasicBlocksBackbone):
    """Adapter for diffusers' `PixArtTransformer2DModel`.

    Models with additional conditions (PixArt-Alpha at 1024) also embed the picture's size, which the pipeline gives.
    """

    family = "pixart"
    class_name = "PixArtTransformer2DModel"
    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    signature = (
        "hidden_states",
        "encoder_hidden_states",
        "timestep",
        "added_cond_kwargs",
        "cross_attention_kwargs",
        "attention_mask",
        "encoder_attention_mask",
    )
    guidance = Guidance(layout="uncond_cond")
    masks_padding = True
    cleaning = "lower"
    built_in = _SIZE  # where the model doesn't embed them, the Alpha pipeline may give them all the same

    def text_conditioning(
        self, encoded: Mapping[str, torch.Tensor], config: Mapping[str, Any], length: int
    ) -> dict[str, torch.Tensor]:
        return {
            "encoder_hidden_states": encoded["text_encoder.last_hidden_state"],
            "encoder_attention_mask": encoded["tokenizer.attention_mask"],
        }

    def conditioning(self, config: Mapping[str, Any], dtype: str) -> tuple[TensorSpec, ...]:
        if config["cross_attention_dim"] is None:
            raise InputError(
                "This PixArt config has no cross_attention_dim, so its blocks don't read the text; "
                "give one with the width of its cross-attention, as published models have it."
            )
        text_width = config["caption_channels"] or config["cross_attention_dim"]
        # In fp32 whatever the dtype: embedded like timesteps, and an aspect ratio is all fraction.
        size = (
            TensorSpec(name="resolution", dtype="fp32", shape=("B", 2), limit=2048.0),
            TensorSpec(name="aspect_ratio", dtype="fp32", shape=("B", 1), limit=4.0),
        )
        return (
            TensorSpec(name="encoder_hidden_states", dtype=dtype, shape=("B", "M", text_width)),
            TensorSpec(name="encoder_attention_mask", dtype=dtype, shape=("B", "M"), kind="mask"),
            *(size if _embeds_size(config) else ()),
        )

    def forward(
        self, model: Any, inputs: Mapping[str, torch.Tensor], tables: Mapping[str, torch.Tensor], focus: Focus
    ) -> torch.Tensor:
        x = self._embedded(model, inputs["hidden_states"], tables, focus)
        temb, embedded = model.adaln_single(
            inputs["timestep"], _size_of(inputs), batch_size=x.shape[0], hidden_dtype=x.dtype
        )
        text = inputs["encoder_hidden_states"]
        if model.caption_projection is not None:
            text = model.caption_projection(text)
        bias = text_bias(inputs["encoder_attention_mask"])
        for block in model.transformer_blocks:
            x = block(x, encoder_hidden_states=text, encoder_attention_mask=bias, timestep=temb)
        shift, scale = (model.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
        return self._prediction(model, model.proj_out(model.norm_out(x) * (1 + scale) + shift))

    def reference(self, model: Any, inputs: Mapping[str, torch.Tensor], latents: Any) -> torch.Tensor:
        tensors = {name: tensor for name, tensor in inputs.items() if name not in _SIZE}
        sample: torch.Tensor = model(**tensors, added_cond_kwargs=_size_of(inputs), return_dict=False)[0]
        return sample


def _size_of(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    return {name: inputs.get(name) for name in _SIZE}


def _embeds_size(config: Mapping[str, Any]) -> bool:
    """Whether the model has additional conditions; a config that doesn't say has them at a sample size of 128."""
    said = config["use_additional_conditions"]
    return bool(config["sample_size"] == 128 if said is None else said)
