"""The parts of the tiny Stable Diffusion 3 pipeline, untrained, and how the whole is written to a folder."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from examples.shapes.tokenizer import LENGTH, save_tokenizer

TEXT_WIDTH = 96
LATENT_SIDE = 24
SAMPLING_SHIFT = 2.0


class Denoiser(nn.Module):
    """What is trained together: the transformer and its two text encoders."""

    def __init__(self, tokenizer: CLIPTokenizer, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.transformer = _new_transformer()
        self.text_encoder = _new_text_encoder(tokenizer)
        self.text_encoder_2 = _new_text_encoder(tokenizer)

    def encode_prompts(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [B, 32] to text states [B, 32, 192] and pooled [B, 192], as the pipeline joins them."""
        encoders = (self.text_encoder, self.text_encoder_2)
        outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return states, torch.cat([output.text_embeds for output in outputs], dim=-1)


def _new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


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
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            # Gates, shifts and the last projection start at zero: every block begins as the identity.
            modulation = name.endswith(("norm1.linear", "norm1_context.linear"))
            if modulation or name.startswith(("norm_out", "proj_out")):
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def assemble(denoiser: Denoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusion3Pipeline:
    """The pipeline around trained parts; it has no T5."""
    return StableDiffusion3Pipeline(
        transformer=denoiser.transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SAMPLING_SHIFT),
        vae=vae.eval(),
        text_encoder=denoiser.text_encoder.eval(),
        tokenizer=tokenizer,
        text_encoder_2=denoiser.text_encoder_2.eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def save_pipeline(denoiser: Denoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the pipeline, its large parts in float16, replacing what is in `folder` once the new one is whole."""
    building = folder.with_name(folder.name + ".new")
    shutil.rmtree(building, ignore_errors=True)
    pipeline = assemble(copy.deepcopy(denoiser).half(), copy.deepcopy(vae).half(), tokenizer)
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        encoder.float()  # transformers computes in the type of the file, where diffusers computes in float32
    pipeline.save_pretrained(building)
    for name in ("tokenizer", "tokenizer_2"):
        save_tokenizer(tokenizer, building / name)
    _forget_origin(building / "vae" / "config.json")
    for file in building.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for the owner alone
    retired = folder.with_name(folder.name + ".old")
    shutil.rmtree(retired, ignore_errors=True)
    if folder.exists():
        folder.rename(retired)
    building.rename(folder)
    shutil.rmtree(retired, ignore_errors=True)


def _forget_origin(config: Path) -> None:
    """Take the folder out of a config from which diffusers had loaded the part; it names a place on this machine."""
    entries = json.loads(config.read_text(encoding="utf-8"))
    entries.pop("_name_or_path", None)
    config.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")
