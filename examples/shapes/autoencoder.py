"""The small AutoencoderKL: 48x48 pictures to 4 x 24 x 24 latents and back."""

from __future__ import annotations

import logging
import time

import torch
from diffusers import AutoencoderKL

from examples.shapes.drawing import PIXELS, draw
from examples.shapes.scenes import training_scenes

log = logging.getLogger(__name__)

BATCH = 32
LEARNING_RATE = 3e-3
KL_WEIGHT = 1e-5


def new_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder that halves height and width once."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=PIXELS,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def train_autoencoder(pictures: torch.Tensor, steps: int, seed: int) -> AutoencoderKL:
    """Train on pictures [count, 3, 48, 48] in [-1, 1]: L1 + 2 MSE + a touch of KL.

    The latents' mean and deviation go into the config as `shift_factor` and `scaling_factor`.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = new_autoencoder().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    started = time.monotonic()
    for step in range(steps):
        rows = torch.randint(len(pictures), (BATCH,), generator=generator)
        target = pictures[rows].contiguous(memory_format=torch.channels_last)
        posterior = model.encode(target).latent_dist
        error = model.decode(posterior.sample(generator)).sample - target
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.abs().mean() + 2 * error.square().mean() + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            elapsed = time.monotonic() - started
            log.info("autoencoder step %d loss %.4f %.0f s", step, loss, elapsed)
    model = model.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    latents = torch.cat([model.encode(chunk).latent_dist.mean for chunk in pictures[:1024].split(128)])
    shift, scale = latents.mean().item(), 1 / latents.std().item()
    model.register_to_config(shift_factor=round(shift, 4), scaling_factor=round(scale, 4))
    return model


@torch.no_grad()
def encode_pictures(model: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Normalised latents [B, 4, 24, 24] as the transformer sees them."""
    latents = torch.cat([model.encode(chunk).latent_dist.mean for chunk in pictures.split(128)])
    return (latents - (model.config.shift_factor or 0)) * model.config.scaling_factor


@torch.no_grad()
def decode_latents(model: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, 48, 48] in [-1, 1] of normalised latents."""
    latents = latents / model.config.scaling_factor + (model.config.shift_factor or 0)
    return torch.cat([model.decode(chunk).sample for chunk in latents.split(128)]).clamp(-1, 1)


@torch.no_grad()
def psnr(model: AutoencoderKL, count: int = 512, seed: int = 7) -> float:
    """Peak signal-to-noise ratio in dB of the round trip over fresh pictures."""
    pictures, _ = draw(training_scenes(count, seed), torch.Generator().manual_seed(seed))
    rebuilt = decode_latents(model, encode_pictures(model, pictures))
    mse = ((rebuilt - pictures) / 2).square().mean()
    return (-10 * mse.log10()).item()
