"""Make the shipped checkpoint, stage by stage: autoencoder, latents, denoiser with text encoders, judge.

    python -m examples.shapes.train --out engines/checkpoints/shapes --seed 0

Each stage leaves its result in the work folder and is passed over when it is already there, and the denoiser goes
on from its last saved step, so that the same command takes up a stopped run.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from examples.shapes import judge
from examples.shapes.autoencoder import psnr, train_autoencoder
from examples.shapes.dataset import training_captions, training_latents, training_pictures
from examples.shapes.diffusion import Training
from examples.shapes.pipeline import Denoiser, save_pipeline
from examples.shapes.scenes import training_scenes
from examples.shapes.tokenizer import LENGTH, new_tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scale:
    """How much of everything: pictures, and steps of the three trainings."""

    autoencoder_pictures: int
    autoencoder_steps: int
    pictures: int
    denoiser_steps: int
    judge_steps: int
    save_every: int = 250


FULL = Scale(20_000, 2_000, 60_000, 7_000, 1_500)
SMOKE = Scale(128, 4, 128, 10, 2, save_every=5)


def make_autoencoder(work: Path, scale: Scale, seed: int) -> AutoencoderKL:
    folder = work / "vae"
    if not (folder / "config.json").exists():
        pictures = training_pictures(scale.autoencoder_pictures, seed)
        model = train_autoencoder(pictures, scale.autoencoder_steps, seed)
        model.save_pretrained(folder)
        log.info("autoencoder: %.1f dB", psnr(model, count=128))
    return AutoencoderKL.from_pretrained(folder).eval()


def make_latents(work: Path, vae: AutoencoderKL, scale: Scale, seed: int) -> torch.Tensor:
    path = work / "latents.safetensors"
    if not path.exists():
        started = time.monotonic()
        latents = training_latents(vae, scale.pictures, seed)[1]
        save_file({"latents": latents}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        log.info("latents: %d in %.0f s", len(latents), time.monotonic() - started)
    return load_file(path)["latents"]


def train_denoiser(
    work: Path, out: Path, vae: AutoencoderKL, latents: torch.Tensor, scale: Scale, seed: int
) -> list[float]:
    """Train, or take up, the denoiser and return the losses; every save writes the running average to `out`."""
    tokenizer = new_tokenizer()
    captions = ["", *training_captions(training_scenes(scale.pictures, seed), seed)]
    ids = tokenizer(captions, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    empty_ids, ids = ids[0], ids[1:]
    training = Training(Denoiser(tokenizer, seed), empty_ids, scale.denoiser_steps, seed)
    state = work / "denoiser.safetensors"
    if state.exists():
        training.resume(state)
    if not out.exists():
        save_pipeline(training.average, vae, tokenizer, out)
    losses: list[float] = []
    started, first = time.monotonic(), training.step
    while training.step < training.steps:
        losses.append(training.advance(latents, ids))
        if training.step % 50 == 0:
            recent = sum(losses[-50:]) / len(losses[-50:])
            rate = (training.step - first) / (time.monotonic() - started)
            log.info("denoiser step %d loss %.4f %.2f steps/s", training.step, recent, rate)
        if training.step % scale.save_every == 0:
            training.save(state)
            save_pipeline(training.average, vae, tokenizer, out)
    training.save(state)
    save_pipeline(training.average, vae, tokenizer, out)
    return losses


def main(arguments: list[str] | None = None) -> list[float]:
    """Run the stages that are not done yet; returns the losses of the denoiser's steps taken now."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "shapes-training",
        help="where stages leave their results (about 400 MB); keep it outside the repository",
    )
    parser.add_argument("--judge", type=Path, help="the judge's file; default: beside this module, or WORK (smoke)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to see that it runs")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    scale = SMOKE if options.smoke else FULL
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    vae = make_autoencoder(options.work, scale, options.seed)
    latents = make_latents(options.work, vae, scale, options.seed)
    losses = train_denoiser(options.work, options.out, vae, latents, scale, options.seed)
    weights = options.judge or (options.work / "judge.safetensors" if options.smoke else judge.WEIGHTS)
    if not weights.exists():
        judge.save(judge.train_judge(vae, scale.judge_steps, options.seed), weights)
    return losses


if __name__ == "__main__":
    main()
