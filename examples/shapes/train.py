"""Make the shipped checkpoint, stage by stage: autoencoder, latents, denoiser with text encoders, judge.

    python -m examples.shapes.train --out engines/checkpoints/shapes --seed 0
    python -m examples.shapes.train --family pixart --out out/shapes-pixart
    python -m examples.shapes.train --family flux --out out/shapes-flux

Other families take the shipped checkpoint's autoencoder, and FLUX learns guidance in a training of its own. Each
stage leaves its result in the work folder and is passed over when it is already there, and a denoiser goes on from its
last saved step, so that the same command takes up a stopped run.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from examples.shapes import judge
from examples.shapes.autoencoder import psnr, train_autoencoder
from examples.shapes.dataset import training_captions, training_latents, training_pictures
from examples.shapes.denoiser import Denoiser, Ids, Tokenizers
from examples.shapes.diffusion import Training
from examples.shapes.flux import Flux, GuidedFlux
from examples.shapes.pipeline import save_pipeline
from examples.shapes.pixart import PixArt
from examples.shapes.scenes import training_scenes
from examples.shapes.sd3 import SD3
from examples.shapes.tokenizer import LENGTH

log = logging.getLogger(__name__)

FAMILIES: dict[str, type[Denoiser]] = {"sd3": SD3, "pixart": PixArt, "flux": Flux}
SHIPPED_AUTOENCODER = Path(__file__).parents[2] / "engines" / "checkpoints" / "shapes" / "vae"


@dataclass(frozen=True)
class Scale:
    """How much of everything: pictures, and steps of the trainings."""

    autoencoder_pictures: int
    autoencoder_steps: int
    pictures: int
    denoiser_steps: int
    guidance_steps: int
    judge_steps: int
    save_every: int = 250

    def of(self, family: str) -> Scale:
        """Of a family: others than the shipped one are trained for less long."""
        return self if family == "sd3" else replace(self, denoiser_steps=5 * self.denoiser_steps // 7)


FULL = Scale(20_000, 2_000, 60_000, 7_000, 1_500, 1_500)
SMOKE = Scale(128, 4, 128, 10, 2, 2, save_every=5)


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


@dataclass(frozen=True)
class Captions:
    """Token ids by tokenizer: of every picture [count, 32], and of no caption [32]."""

    ids: Ids
    empty: Ids


def make_captions(tokenizers: Tokenizers, scale: Scale, seed: int) -> Captions:
    texts = ["", *training_captions(training_scenes(scale.pictures, seed), seed)]
    ids = {
        name: own(texts, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
        for name, own in tokenizers.items()
    }
    return Captions({name: own[1:] for name, own in ids.items()}, {name: own[0] for name, own in ids.items()})


@dataclass(frozen=True)
class Stage:
    """Where a training leaves its state and its pipeline.

    Attributes:
        out: None: no pipeline is written.
    """

    state: Path
    out: Path | None
    vae: AutoencoderKL
    tokenizers: Tokenizers
    save_every: int

    def carry_out(self, training: Training, latents: torch.Tensor, captions: Captions) -> list[float]:
        """Train, or take up, a denoiser and return the losses; every save writes the running average to `out`."""
        if self.state.exists():
            training.resume(self.state)
        if self.out is not None and not self.out.exists():
            save_pipeline(training.average, self.vae, self.tokenizers, self.out)
        losses: list[float] = []
        started, first = time.monotonic(), training.step
        while training.step < training.steps:
            losses.append(training.advance(latents, captions.ids))
            if training.step % 50 == 0:
                recent = sum(losses[-50:]) / len(losses[-50:])
                rate = (training.step - first) / (time.monotonic() - started)
                log.info("denoiser step %d loss %.4f %.2f steps/s", training.step, recent, rate)
            if training.step % self.save_every == 0 or training.step == training.steps:
                self._save(training)
        return losses

    def _save(self, training: Training) -> None:
        training.save(self.state)
        if self.out is not None:
            save_pipeline(training.average, self.vae, self.tokenizers, self.out)


def train_family(
    family: str, work: Path, out: Path, vae: AutoencoderKL, latents: torch.Tensor, scale: Scale, seed: int
) -> list[float]:
    """All trainings of a family's denoiser; the losses of the steps taken now."""
    kind = FAMILIES[family]
    tokenizers = kind.tokenizers()
    captions = make_captions(tokenizers, scale, seed)
    guided = kind is Flux
    training = Training(kind(tokenizers, seed), captions.empty, scale.denoiser_steps, seed)
    first = Stage(work / "denoiser.safetensors", None if guided else out, vae, tokenizers, scale.save_every)
    losses = first.carry_out(training, latents, captions)
    if not guided:
        return losses
    guided_flux = GuidedFlux(tokenizers, training.average, captions.empty)
    pupil = Training(guided_flux, captions.empty, scale.guidance_steps, seed)
    second = Stage(work / "guided.safetensors", out, vae, tokenizers, scale.save_every)
    return losses + second.carry_out(pupil, latents, captions)


def main(arguments: list[str] | None = None) -> list[float]:
    """Run the stages that are not done yet; returns the losses of the denoiser's steps taken now."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--family", choices=FAMILIES, default="sd3")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "shapes-training",
        help="where stages leave their results (about 400 MB a family); keep it outside the repository",
    )
    parser.add_argument("--judge", type=Path, help="the judge's file; default: beside this module, or WORK (smoke)")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to see that it runs")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    scale = (SMOKE if options.smoke else FULL).of(options.family)
    work = options.work if options.family == "sd3" else options.work / options.family
    work.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.family == "sd3":
        vae = make_autoencoder(work, scale, options.seed)
    else:
        vae = AutoencoderKL.from_pretrained(SHIPPED_AUTOENCODER).float().eval()
        if not FAMILIES[options.family].shifts_latents:
            vae.register_to_config(shift_factor=None)
    latents = make_latents(work, vae, scale, options.seed)
    losses = train_family(options.family, work, options.out, vae, latents, scale, options.seed)
    if options.family != "sd3":
        return losses  # the judge that reads these pictures is there
    weights = options.judge or (options.work / "judge.safetensors" if options.smoke else judge.WEIGHTS)
    if not weights.exists():
        judge.save(judge.train_judge(vae, scale.judge_steps, options.seed), weights)
    return losses


if __name__ == "__main__":
    main()
