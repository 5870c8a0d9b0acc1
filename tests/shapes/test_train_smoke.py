"""A few steps of the whole training: it runs, it learns, it resumes, and it trains the function the pipeline runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FluxPipeline

from examples.shapes import train
from examples.shapes.captions import WORDS, heldout_prompts
from examples.shapes.denoiser import Denoiser
from examples.shapes.diffusion import Training
from examples.shapes.flux import Flux, GuidedFlux
from examples.shapes.muon import orthogonalise
from examples.shapes.pixart import PixArt
from examples.shapes.sd3 import SD3
from examples.shapes.tokenizer import LENGTH, new_t5_tokenizer

PROMPTS = ["", "an intricate red star on the left, plain blue background", "a big pink heart"]


def ids_of(kind: type[Denoiser]) -> dict[str, torch.Tensor]:
    return {
        name: own(PROMPTS, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
        for name, own in kind.tokenizers().items()
    }


def disturbed(denoiser: Denoiser) -> Denoiser:
    """With other weights: gates and last layers start at zero and would hide everything."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return denoiser.eval()


@pytest.mark.parametrize("family", ["pixart", "flux"])
def test_other_families_are_trained_with_the_shipped_autoencoder(family: str, tmp_path: Path) -> None:
    out = tmp_path / "pipeline"
    words = ["--smoke", "--family", family, "--out", str(out), "--work", str(tmp_path)]
    losses = train.main(words)
    scale = train.SMOKE.of(family)
    assert len(losses) == scale.denoiser_steps + (scale.guidance_steps if family == "flux" else 0)
    pipeline = DiffusionPipeline.from_pretrained(out)
    shipped = AutoencoderKL.from_pretrained(train.SHIPPED_AUTOENCODER)
    for own, its in zip(pipeline.vae.parameters(), shipped.parameters(), strict=True):
        assert torch.equal(own, its)
    assert train.main(words) == []


@pytest.mark.parametrize("kind", [PixArt, Flux])
def test_a_family_is_trained_on_the_function_that_its_pipeline_runs(kind: type[Denoiser]) -> None:
    tokenizers = kind.tokenizers()
    denoiser = disturbed(kind(tokenizers, seed=0))
    vae = AutoencoderKL.from_pretrained(train.SHIPPED_AUTOENCODER).float()
    pipe = denoiser.assemble(vae, tokenizers)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    packed = FluxPipeline._pack_latents(latents, 1, 4, 24, 24) if kind is Flux else latents
    after: list[torch.Tensor] = []

    def keep(_: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        after.append(kwargs["latents"].clone())
        return kwargs

    ways = {
        Flux: {"callback_on_step_end": keep},
        PixArt: {"callback": lambda i, t, latents: after.append(latents.clone()), "use_resolution_binning": False},
    }
    asked = {"num_inference_steps": 3, "guidance_scale": 1.0, "max_sequence_length": LENGTH, "output_type": "latent"}
    pipe(PROMPTS[1], height=48, width=48, latents=packed, **asked, **ways[kind])
    sigmas, timestep = pipe.scheduler.sigmas, pipe.scheduler.timesteps[0]
    found = (after[0] - packed) / (sigmas[1] - sigmas[0])
    ids = {name: own[1:2] for name, own in ids_of(kind).items()}
    with torch.no_grad():
        wanted = denoiser.predict(latents, timestep[None] / 1000, ids, torch.Generator())
    wanted = FluxPipeline._pack_latents(wanted, 1, 4, 24, 24) if kind is Flux else wanted
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_flux_learns_what_its_teacher_says_with_guidance() -> None:
    tokenizers, ids = Flux.tokenizers(), ids_of(Flux)
    teacher = disturbed(Flux(tokenizers, seed=0))
    empty = {name: own[0] for name, own in ids.items()}
    pupil = GuidedFlux(tokenizers, teacher, empty)
    noisy, sigma = torch.randn(3, 4, 24, 24), torch.tensor([0.1, 0.5, 0.9])
    predicted, wanted = pupil.lesson(noisy, noisy, sigma, ids, torch.Generator().manual_seed(2))
    scales = 1 + 6 * torch.rand(3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        cond = teacher.predict(noisy, sigma, ids, torch.Generator())
        nothing = {name: own[:1].expand_as(own) for name, own in ids.items()}
        uncond = teacher.predict(noisy, sigma, nothing, torch.Generator())
    torch.testing.assert_close(wanted, uncond + scales[:, None, None, None] * (cond - uncond), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(predicted, pupil.told(noisy, sigma, ids, scales))
    assert torch.equal(wanted[0], uncond[0]) or torch.allclose(wanted[0], uncond[0], atol=1e-4)  # no caption
    assert not any(name.startswith("_taught_by") for name, _ in pupil.named_parameters())


def test_every_known_word_is_one_token_of_t5s_too() -> None:
    tokenizer = new_t5_tokenizer()
    assert all(len(tokenizer(word).input_ids) == 2 for word in WORDS)
    assert max(len(tokenizer(prompt).input_ids) for prompt in heldout_prompts(512)) <= LENGTH


def test_a_smoke_run_goes_through_all_stages_lowers_the_loss_and_is_passed_over_the_second_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, work = tmp_path / "pipeline", tmp_path / "work"
    losses = train.main(["--smoke", "--out", str(out), "--work", str(work)])
    assert len(losses) == train.SMOKE.denoiser_steps
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert (out / "model_index.json").exists()
    assert (work / "judge.safetensors").exists()
    pickles = [path for path in tmp_path.rglob("*") if path.suffix in {".pt", ".pth", ".bin", ".ckpt", ".pkl"}]
    assert pickles == []
    assert train.main(["--smoke", "--out", str(out), "--work", str(work)]) == []


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    ids = ids_of(SD3)
    empty = {name: own[0] for name, own in ids.items()}
    latents = torch.randn(3, 4, 24, 24, generator=torch.Generator().manual_seed(0))

    def new_training(steps: int = 2) -> Training:
        return Training(SD3(SD3.tokenizers(), seed=0), empty, steps, seed=0)

    unbroken = new_training()
    unbroken.advance(latents, ids)
    unbroken.save(tmp_path / "state.safetensors")
    resumed = new_training()
    resumed.resume(tmp_path / "state.safetensors")
    for training in (unbroken, resumed):
        training.advance(latents, ids)
    for name, tensor in unbroken.average.state_dict().items():
        torch.testing.assert_close(resumed.average.state_dict()[name], tensor, msg=name)
    with pytest.raises(ValueError, match="holds a run of 2 steps with seed 0, not of 9 with 0"):
        new_training(9).resume(tmp_path / "state.safetensors")


@pytest.mark.parametrize("count", [0, 1, 7, 256])
def test_one_biased_token_trains_the_function_of_many_zero_tokens(count: int) -> None:
    denoiser, ids = disturbed(SD3(SD3.tokenizers(), seed=0)), ids_of(SD3)["tokenizer"]
    with torch.no_grad():
        latents, sigma = torch.randn(3, 4, 24, 24), torch.tensor([0.1, 0.5, 0.9])
        states, pooled = denoiser.encode_prompts(ids)
        expected = denoiser.transformer(
            latents,
            encoder_hidden_states=torch.cat([states, torch.zeros(3, count, states.shape[-1])], dim=1),
            pooled_projections=pooled,
            timestep=sigma * 1000,
        ).sample
        trained = copy.deepcopy(denoiser)
        trained.begin_training()
        found = trained.velocity(latents, sigma, ids, torch.full((3,), float(count)))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_muon_brings_singular_values_near_one() -> None:
    matrices = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.4
