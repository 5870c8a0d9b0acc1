"""A few steps of the whole training: it runs, it learns, it resumes, and it trains the function the pipeline runs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from examples.shapes import train
from examples.shapes.diffusion import RepeatedTokenAttention, Training, predict_velocity
from examples.shapes.muon import orthogonalise
from examples.shapes.pipeline import Denoiser
from examples.shapes.tokenizer import LENGTH, new_tokenizer


@pytest.fixture(scope="module")
def token_ids() -> torch.Tensor:
    prompts = ["", "an intricate red star on the left, plain blue background", "a big pink heart"]
    return new_tokenizer()(prompts, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids


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


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path, token_ids: torch.Tensor) -> None:
    latents = torch.randn(3, 4, 24, 24, generator=torch.Generator().manual_seed(0))

    def new_training(steps: int = 2) -> Training:
        return Training(Denoiser(new_tokenizer(), seed=0), token_ids[0], steps, seed=0)

    unbroken = new_training()
    unbroken.advance(latents, token_ids)
    unbroken.save(tmp_path / "state.safetensors")
    resumed = new_training()
    resumed.resume(tmp_path / "state.safetensors")
    for training in (unbroken, resumed):
        training.advance(latents, token_ids)
    for name, tensor in unbroken.average.state_dict().items():
        torch.testing.assert_close(resumed.average.state_dict()[name], tensor, msg=name)
    with pytest.raises(ValueError, match="holds a run of 2 steps with seed 0, not of 9 with 0"):
        new_training(9).resume(tmp_path / "state.safetensors")


@pytest.mark.parametrize("count", [0, 1, 7, 256])
def test_one_biased_token_trains_the_function_of_many_zero_tokens(count: int, token_ids: torch.Tensor) -> None:
    denoiser = Denoiser(new_tokenizer(), seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # the gates start at zero and would hide everything
        latents, sigma = torch.randn(3, 4, 24, 24), torch.tensor([0.1, 0.5, 0.9])
        states, pooled = denoiser.encode_prompts(token_ids)
        expected = denoiser.transformer(
            latents,
            encoder_hidden_states=torch.cat([states, torch.zeros(3, count, states.shape[-1])], dim=1),
            pooled_projections=pooled,
            timestep=sigma * 1000,
        ).sample
        trained = copy.deepcopy(denoiser)
        trained.transformer.set_attn_processor(RepeatedTokenAttention())
        found = predict_velocity(trained, latents, sigma, token_ids, torch.full((3,), float(count)))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_muon_brings_singular_values_near_one() -> None:
    matrices = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.4
