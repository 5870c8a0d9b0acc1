"""A tiny FLUX, untrained: joint attention with rotary positions, and guidance that is learned in a second training."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase

from examples.shapes.denoiser import (
    SAMPLING_SHIFT,
    TEXT_WIDTH,
    Denoiser,
    Ids,
    Tokenizers,
    begin_as_the_identity,
    clip_config,
    new_t5,
)
from examples.shapes.tokenizer import LENGTH, new_t5_tokenizer, new_tokenizer

SCALES = 1.0, 7.0
"""Between these guidance is learned."""


class Flux(Denoiser):
    """A transformer with a CLIP for what is pooled and a T5 for tokens; not yet guided: it is told a scale of 1."""

    block_lists = ("transformer_blocks", "single_transformer_blocks")

    def __init__(self, tokenizers: Tokenizers, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.transformer = _new_transformer()
        self.text_encoder = CLIPTextModel(CLIPTextConfig(**clip_config(tokenizers["tokenizer"], LENGTH)))
        self.text_encoder_2 = new_t5(tokenizers["tokenizer_2"])

    @staticmethod
    def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
        return {"tokenizer": new_tokenizer(), "tokenizer_2": new_t5_tokenizer()}

    def predict(self, noisy: torch.Tensor, sigma: torch.Tensor, ids: Ids, generator: torch.Generator) -> torch.Tensor:
        return self.told(noisy, sigma, ids, torch.ones(len(noisy)))

    def told(self, noisy: torch.Tensor, sigma: torch.Tensor, ids: Ids, scales: torch.Tensor) -> torch.Tensor:
        """The velocity where the transformer is told to guide by `scales` [B]."""
        batch, channels, height, width = noisy.shape
        places = torch.zeros(height // 2, width // 2, 3)
        places[..., 1] += torch.arange(height // 2)[:, None]
        places[..., 2] += torch.arange(width // 2)[None]
        packed = self.transformer(
            FluxPipeline._pack_latents(noisy, batch, channels, height, width),
            encoder_hidden_states=self.text_encoder_2(ids["tokenizer_2"])[0],
            pooled_projections=self.text_encoder(ids["tokenizer"]).pooler_output,
            timestep=sigma,
            img_ids=places.flatten(0, 1),
            txt_ids=torch.zeros(LENGTH, 3),
            guidance=scales,
            return_dict=False,
        )[0]
        return FluxPipeline._unpack_latents(packed, height, width, 1)

    def assemble(self, vae: AutoencoderKL, tokenizers: Tokenizers) -> FluxPipeline:
        return FluxPipeline(
            transformer=self.transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=SAMPLING_SHIFT),
            vae=vae.eval(),
            text_encoder=self.text_encoder.eval(),
            text_encoder_2=self.text_encoder_2.eval(),
            **tokenizers,
        )


class GuidedFlux(Flux):
    """A FLUX that learns to say at once what a teacher says with guidance: two calls' worth, at any scale."""

    def __init__(self, tokenizers: Tokenizers, teacher: Flux, empty: Ids) -> None:
        super().__init__(tokenizers, seed=0)
        self.load_state_dict(teacher.state_dict())
        self._taught_by = (teacher.eval().requires_grad_(False), empty)  # in a tuple: no part of this module

    def lesson(
        self, noisy: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor, ids: Ids, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        teacher, empty = self._taught_by
        low, high = SCALES
        scales = low + (high - low) * torch.rand(len(noisy), generator=generator)
        with torch.no_grad():
            both = {name: torch.cat([empty[name].expand_as(own), own]) for name, own in ids.items()}
            said = teacher.predict(noisy.repeat(2, 1, 1, 1), sigma.repeat(2), both, generator)
        uncond, cond = said.chunk(2)
        return self.told(noisy, sigma, ids, scales), uncond + scales[:, None, None, None] * (cond - uncond)


def _new_transformer() -> FluxTransformer2DModel:
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=[8, 12, 12],
        guidance_embeds=True,
    )
    closed = ("norm1.linear", "norm1_context.linear", "norm.linear")
    begin_as_the_identity(transformer, closed, ("norm_out", "proj_out"))
    return transformer
