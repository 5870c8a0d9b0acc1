"""The training set: captions, pictures and, once there is an autoencoder, latents, all from one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from diffusers import AutoencoderKL

from examples.shapes.autoencoder import encode_pictures
from examples.shapes.captions import caption
from examples.shapes.drawing import draw
from examples.shapes.scenes import Scene, training_scenes

CHUNK = 1000


def picture_chunks(scenes: list[Scene], seed: int) -> Iterator[torch.Tensor]:
    """Pictures [<= 1000, 3, 48, 48] of the scenes, in order, with small variations drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(scenes), CHUNK):
        yield draw(scenes[start : start + CHUNK], generator)[0]


def training_pictures(count: int, seed: int) -> torch.Tensor:
    """Pictures [count, 3, 48, 48] in [-1, 1]."""
    return torch.cat(list(picture_chunks(training_scenes(count, seed), seed)))


def training_latents(model: AutoencoderKL, count: int, seed: int) -> tuple[list[Scene], torch.Tensor]:
    """Scenes and their normalised latents [count, 4, 24, 24], float16 to spare memory."""
    scenes = training_scenes(count, seed)
    latents = [encode_pictures(model, pictures).half() for pictures in picture_chunks(scenes, seed)]
    return scenes, torch.cat(latents)


def training_captions(scenes: list[Scene], seed: int) -> list[str]:
    """One wording for each scene."""
    rng = random.Random(seed)
    return [caption(scene, rng) for scene in scenes]
