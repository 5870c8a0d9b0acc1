"""DiT: pictures of classes, without text; every block modulates by timestep and class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accelaes_export.backbones.base import Focus
from accelaes_export.backbones.basic_blocks import BasicBlocksBackbone
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.tensors import TensorSpec
from accelaes_export.errors import InputError

if TYPE_CHECKING:
    import torch


class DiTBackbone(BasicBlocksBackbone):
    """Adapter for diffusers' `DiTTransformer2DModel`."""

    family = "dit"
    class_name = "DiTTransformer2DModel"
    pipelines = ("DiTPipeline",)
    signature = ("hidden_states", "timestep", "class_labels", "cross_attention_kwargs")
    guidance = Guidance(layout="cond_uncond")
    read_parts = ("norm1",)  # it embeds the timestep for the end of the network, too

    def latents(
        self, config: Mapping[str, Any], resolution: tuple[int, int], vae_scale: int, frames: int | None = None
    ) -> Latents:
        latents = super().latents(config, resolution, vae_scale, frames)
        side = config["sample_size"] * vae_scale
        if resolution != (side, side):
            # The model unpatchifies squares, and its pipeline has no option for a size.
            raise InputError(
                f"{resolution[0]}x{resolution[1]} was asked for, but this DiT draws squares of its own size alone; "
                f"give {side}x{side}, or a checkpoint of another size."
            )
        return latents

    def conditioning(self, config: Mapping[str, Any], dtype: str) -> tuple[TensorSpec, ...]:
        # One class more than there are: that of no class, for guidance.
        classes = config["num_embeds_ada_norm"] + 1
        return (TensorSpec(name="class_labels", dtype="int64", shape=("B",), kind="label", limit=classes),)

    def forward(
        self, model: Any, inputs: Mapping[str, torch.Tensor], tables: Mapping[str, torch.Tensor], focus: Focus
    ) -> torch.Tensor:
        import torch

        x = self._embedded(model, inputs["hidden_states"], tables, focus)
        timestep, labels = inputs["timestep"], inputs["class_labels"]
        for block in model.transformer_blocks:
            x = block(x, timestep=timestep, class_labels=labels)
        temb = model.transformer_blocks[0].norm1.emb(timestep, labels, hidden_dtype=x.dtype)
        shift, scale = model.proj_out_1(torch.nn.functional.silu(temb)).chunk(2, dim=1)
        return self._prediction(model, model.proj_out_2(model.norm_out(x) * (1 + scale[:, None]) + shift[:, None]))
