"""The tiny Stable Diffusion 3, untrained, and how it is trained without a T5."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerBase

from examples.shapes.denoiser import (
    LATENT_SIDE,
    SAMPLING_SHIFT,
    TEXT_WIDTH,
    Denoiser,
    Ids,
    Tokenizers,
    begin_as_the_identity,
    clip_config,
)
from examples.shapes.tokenizer import LENGTH, new_tokenizer

T5_LENGTH = 256  # the pipeline's default max_sequence_length


class SD3(Denoiser):
    """A transformer with two CLIP text encoders."""

    def __init__(self, tokenizers: Tokenizers, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.transformer = _new_transformer()
        self.text_encoder = _new_text_encoder(tokenizers["tokenizer"])
        self.text_encoder_2 = _new_text_encoder(tokenizers["tokenizer_2"])

    @staticmethod
    def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
        tokenizer = new_tokenizer()
        return {"tokenizer": tokenizer, "tokenizer_2": tokenizer}

    def begin_training(self) -> None:
        self.transformer.set_attn_processor(RepeatedTokenAttention())

    def encode_prompts(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [B, 32] to text states [B, 32, 192] and pooled [B, 192], as the pipeline joins them."""
        encoders = (self.text_encoder, self.text_encoder_2)
        outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return states, torch.cat([output.text_embeds for output in outputs], dim=-1)

    def predict(self, noisy: torch.Tensor, sigma: torch.Tensor, ids: Ids, generator: torch.Generator) -> torch.Tensor:
        return self.velocity(noisy, sigma, ids["tokenizer"], _random_counts(generator, len(noisy)))

    def velocity(
        self, noisy: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        """With `counts` [B] zero tokens in the place of T5's; only after `begin_training`."""
        states, pooled = self.encode_prompts(ids)
        states = torch.cat([states, states.new_zeros(len(states), 1, states.shape[-1])], dim=1)
        tokens = noisy[0, 0].numel() // self.transformer.config.patch_size**2 + states.shape[1]
        return self.transformer(
            noisy,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=sigma * 1000,
            joint_attention_kwargs={"key_bias": key_bias(counts, tokens)},
            return_dict=False,
        )[0]

    def assemble(self, vae: AutoencoderKL, tokenizers: Tokenizers) -> StableDiffusion3Pipeline:
        """The pipeline around trained parts; it has no T5."""
        return StableDiffusion3Pipeline(
            transformer=self.transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=SAMPLING_SHIFT),
            vae=vae.eval(),
            text_encoder=self.text_encoder.eval(),
            text_encoder_2=self.text_encoder_2.eval(),
            text_encoder_3=None,
            tokenizer_3=None,
            **tokenizers,
        )


def _new_text_encoder(tokenizer: PreTrainedTokenizerBase) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(CLIPTextConfig(**clip_config(tokenizer, LENGTH)))


def _new_transformer() -> SD3Transformer2DModel:
    transformer = SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=LATENT_SIDE,
        qk_norm="rms_norm",
    )
    begin_as_the_identity(transformer, ("norm1.linear", "norm1_context.linear"), ("norm_out", "proj_out"))
    return transformer


class RepeatedTokenAttention:
    """Joint attention in which the last text token stands for many equal ones.

    Without a T5 the pipeline appends `max_sequence_length` zero vectors to the text. They carry no position and
    so stay equal to each other through all blocks; `count` equal keys act as one with log(count) added to its
    logit. `key_bias` [B, 1, 1, N + M] is that logarithm on the last key and zero elsewhere.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,  # [B, N, D]
        encoder_hidden_states: torch.Tensor,  # [B, M, D]
        attention_mask: None = None,  # diffusers always hands one over
        *,
        key_bias: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = hidden_states.shape[1]
        image = (attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), (attn.to_v, None)
        text = (
            (attn.add_q_proj, attn.norm_added_q),
            (attn.add_k_proj, attn.norm_added_k),
            (attn.add_v_proj, None),
        )
        q, k, v = (
            torch.cat([_heads(hidden_states, attn.heads, *i), _heads(encoder_hidden_states, attn.heads, *t)], dim=2)
            for i, t in zip(image, text, strict=True)
        )  # [B, H, N + M, hd] each
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=key_bias).transpose(1, 2).flatten(2)
        hidden_states, encoder_hidden_states = attn.to_out[0](out[:, :tokens]), out[:, tokens:]
        if not attn.context_pre_only:
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states


def _heads(states: torch.Tensor, heads: int, projection: nn.Module, norm: nn.Module | None) -> torch.Tensor:
    split = projection(states).unflatten(-1, (heads, -1)).transpose(1, 2)
    return split if norm is None else norm(split)


def key_bias(counts: torch.Tensor, tokens: int) -> torch.Tensor:
    """log(count) on the last of `tokens` keys, [B, 1, 1, tokens]; a count of zero hides the key."""
    bias = torch.zeros(len(counts), 1, 1, tokens)
    bias[:, 0, 0, -1] = torch.where(counts > 0, counts.clamp(min=1).log(), -1e4)
    return bias


def _random_counts(generator: torch.Generator, count: int) -> torch.Tensor:
    """How many zero tokens the pipeline might append, [count]: mostly its default, else any, often few."""
    kind = torch.rand(count, generator=generator)
    spread = torch.rand(count, generator=generator)
    small = torch.floor(T5_LENGTH**spread) - 1  # log-uniform over 0 ... 255
    even = torch.floor((T5_LENGTH + 1) * spread)
    return torch.where(kind < 0.5, torch.full_like(kind, T5_LENGTH), torch.where(kind < 0.75, small, even))
