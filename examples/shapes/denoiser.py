"""What is trained together: a transformer and its text encoders, whichever family they are of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import nn
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel

TEXT_WIDTH = 96
LATENT_SIDE = 24
SAMPLING_SHIFT = 2.0

Tokenizers = Mapping[str, PreTrainedTokenizerBase]
Ids = Mapping[str, torch.Tensor]
"""A prompt's token ids [B, 32] by tokenizer."""


class Denoiser(nn.Module, ABC):
    """A transformer with its text encoders.

    Attributes:
        block_lists: of the transformer: the matrices in them are trained with Muon.
        shifts_latents: whether the pipeline knows an autoencoder's `shift_factor`.
    """

    block_lists: tuple[str, ...] = ("transformer_blocks",)
    shifts_latents = True
    transformer: nn.Module

    @staticmethod
    @abstractmethod
    def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
        """By their name in the pipeline."""

    def begin_training(self) -> None:
        """Called on the copy that is trained, and not on the one that is saved."""

    def lesson(
        self, noisy: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor, ids: Ids, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is predicted from latents [B, 4, 24, 24] at sigma [B], and what it should have been."""
        return self.predict(noisy, sigma, ids, generator), velocity

    @abstractmethod
    def predict(self, noisy: torch.Tensor, sigma: torch.Tensor, ids: Ids, generator: torch.Generator) -> torch.Tensor:
        """The predicted velocity [B, 4, 24, 24] of latents at sigma [B]."""

    @abstractmethod
    def assemble(self, vae: AutoencoderKL, tokenizers: Tokenizers) -> DiffusionPipeline:
        """The pipeline around trained parts."""


def new_t5(tokenizer: PreTrainedTokenizerBase) -> T5EncoderModel:
    """An untrained T5 of two layers."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=TEXT_WIDTH,
            d_kv=TEXT_WIDTH // 4,
            d_ff=4 * TEXT_WIDTH,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def begin_as_the_identity(transformer: nn.Module, closed: tuple[str, ...], last: tuple[str, ...]) -> None:
    """Linear layers for the beginning: those whose names end in `closed` or begin with `last` are zero."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            if name.endswith(closed) or name.startswith(last):
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def clip_config(tokenizer: Any, length: int) -> dict[str, Any]:
    """Of a CLIP text encoder of two layers."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "projection_dim": TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
