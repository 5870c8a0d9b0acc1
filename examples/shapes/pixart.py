"""A tiny PixArt, untrained: cross-attention to the text of a T5, trained and sampled by rectified flow."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from transformers import PreTrainedTokenizerBase

from examples.shapes.denoiser import (
    LATENT_SIDE,
    SAMPLING_SHIFT,
    TEXT_WIDTH,
    Denoiser,
    Ids,
    Tokenizers,
    begin_as_the_identity,
    new_t5,
)
from examples.shapes.tokenizer import new_t5_tokenizer


class PixArt(Denoiser):
    """A transformer with a T5. Text behind its end is masked, as the pipeline does."""

    shifts_latents = False

    def __init__(self, tokenizers: Tokenizers, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.transformer = _new_transformer()
        self.text_encoder = new_t5(tokenizers["tokenizer"])

    @staticmethod
    def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
        return {"tokenizer": new_t5_tokenizer()}

    def predict(self, noisy: torch.Tensor, sigma: torch.Tensor, ids: Ids, generator: torch.Generator) -> torch.Tensor:
        own = ids["tokenizer"]
        mask = (own != self.text_encoder.config.pad_token_id).long()
        return self.transformer(
            noisy,
            encoder_hidden_states=self.text_encoder(own, attention_mask=mask)[0],
            encoder_attention_mask=mask,
            timestep=sigma * 1000,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]

    def assemble(self, vae: AutoencoderKL, tokenizers: Tokenizers) -> PixArtSigmaPipeline:
        # PixArt's pipeline asks its scheduler for what flow matching's Euler has not; of order 1 this is the same.
        scheduler = DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=1, flow_shift=SAMPLING_SHIFT
        )
        return PixArtSigmaPipeline(
            transformer=self.transformer.eval(),
            scheduler=scheduler,
            vae=vae.eval(),
            text_encoder=self.text_encoder.eval(),
            **tokenizers,
        )


def _new_transformer() -> PixArtTransformer2DModel:
    transformer = PixArtTransformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        cross_attention_dim=128,
        caption_channels=TEXT_WIDTH,
        use_additional_conditions=False,
    )
    closed = ("attn1.to_out.0", "attn2.to_out.0", "ff.net.2")
    begin_as_the_identity(transformer, closed, ("proj_out", "adaln_single.linear"))
    for name, parameter in transformer.named_parameters():
        if name.endswith("scale_shift_table"):  # gates are open, and what they let through begins at zero
            with torch.no_grad():
                parameter.zero_()
                if parameter.shape[0] == 6:
                    parameter[[2, 5]] = 1.0
    return transformer
