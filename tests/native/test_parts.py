"""Parts of the library by themselves: the noise of a seed against torch's CPU generator, to the bit; schedules."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native.conftest import SOURCES, missing

AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")  # whose rounding it is


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if missing():
        pytest.skip(f"{missing()} isn't here")
    program = tmp_path_factory.mktemp("parts") / "parts"
    own = [SOURCES / "src" / f"{name}.cpp" for name in ("noise", "schedule")]
    sources = [Path(__file__).with_name("parts.cpp"), *own]
    folders = ["-I", SOURCES / "src", "-I", SOURCES / "include"]
    wide = [
        "-O3",
        "-march=native",
        "-ffp-contract=off",
    ]  # what rounds twice must do so with all of a CPU's instructions
    subprocess.run(["g++", "-std=c++17", *wide, *folders, *sources, "-o", program], check=True)
    return program


def drawn(program: Path, seed: int, *sizes: int) -> list[np.ndarray]:
    return np.split(said(program, "numbers", seed, *sizes), np.cumsum(sizes)[:-1])


def said(program: Path, *words: object) -> np.ndarray:
    made = subprocess.run([str(program), *map(str, words)], capture_output=True, check=True)
    return np.frombuffer(made.stdout, np.float32)


@pytest.mark.skipif(not AVX2, reason="torch draws with other functions here")
@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**63 - 1) | st.integers(0, 100),
    sizes=st.lists(st.integers(16, 5000), min_size=1, max_size=8),
)
def test_any_size_of_any_seed(parts: Path, seed: int, sizes: list[int]) -> None:
    for size, found in zip(sizes, drawn(parts, seed, *sizes), strict=True):
        wanted = torch.randn(size, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.skipif(not AVX2, reason="torch draws with other functions here")
@pytest.mark.parametrize("seed", [0, 3])
def test_eight_million_numbers(parts: Path, seed: int) -> None:
    """Of the 2^24 uniform numbers there are, a good part."""
    (found,) = drawn(parts, seed, 8_000_003)
    wanted = torch.randn(8_000_003, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
    assert np.array_equal(found.view(np.int32), wanted.view(np.int32))


@pytest.mark.skipif(not AVX2, reason="torch draws with other functions here")
def test_packed_latents_are_drawn_as_pictures_and_packed_as_flux_does(parts: Path) -> None:
    from diffusers import FluxPipeline

    images, C, H, W = 2, 3, 8, 6
    picture = torch.randn(images, C, H, W, generator=torch.Generator("cpu").manual_seed(5))
    wanted = FluxPipeline._pack_latents(picture, images, C, H, W).numpy()
    assert said(parts, "packed", 5, images, C, H, W, 2).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("shift", [1.0, 2.0, 3.0, 0.7])
@pytest.mark.parametrize("train", [1000, 50])
def test_a_schedule_is_diffusers(parts: Path, shift: float, train: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, num_train_timesteps=train)
    for steps in (2, 3, 4, 7, 20, 28, 50, 99, 100):
        scheduler.set_timesteps(steps)
        found = said(parts, "schedule", shift, train, steps)
        wanted = np.concatenate([scheduler.sigmas.numpy(), scheduler.timesteps.numpy()])
        assert np.array_equal(found, wanted), steps
