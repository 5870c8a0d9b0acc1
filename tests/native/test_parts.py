"""Parts of the library by themselves: the noise of a seed against torch's CPU generator, to the bit; schedules."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

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


OPTIONS = st.fixed_dictionaries(
    {
        "shift": st.sampled_from([1.0, 2.0, 3.0, 0.7]),
        "num_train_timesteps": st.sampled_from([1000, 50]),
        "use_dynamic_shifting": st.booleans(),
        "time_shift_type": st.sampled_from(["exponential", "linear"]),
        "base_shift": st.sampled_from([0.5, 0.9]),
        "max_shift": st.sampled_from([1.15, 2.02]),
        "base_image_seq_len": st.sampled_from([256, 1024]),
        "max_image_seq_len": st.sampled_from([4096, 8192]),
        "shift_terminal": st.sampled_from([None, 0.1]),
        "invert_sigmas": st.booleans(),
    }
)
SPACINGS = ["", "use_karras_sigmas", "use_exponential_sigmas"]


@settings(max_examples=150, deadline=None)
@given(
    options=OPTIONS,
    spacing=st.sampled_from(SPACINGS),
    tokens=st.sampled_from([144, 1024, 4096]),
    steps=st.sampled_from([2, 3, 4, 7, 20, 28, 50, 99, 100]),
    flux=st.booleans(),
)
def test_a_schedule_is_diffusers_with_any_options(
    parts: Path, options: dict[str, Any], spacing: str, tokens: int, steps: int, flux: bool
) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    options = options | ({spacing: True} if spacing else {})
    scheduler = FlowMatchEulerDiscreteScheduler(**options)
    own = scheduler.config
    mu = calculate_shift(tokens, own.base_image_seq_len, own.max_image_seq_len, own.base_shift, own.max_shift)
    shifted = {"mu": mu} if own.use_dynamic_shifting else {}
    if flux:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), **shifted)
    else:
        scheduler.set_timesteps(steps, **shifted)
    numbers = {name: value if name != "time_shift_type" else value == "linear" for name, value in options.items()}
    given = [f"{name}={float(value or 0)}" for name, value in numbers.items()]
    found = said(parts, "schedule", tokens, steps, f"flux={int(flux)}", *given)
    sigmas, timesteps = scheduler.sigmas.numpy(), scheduler.timesteps.numpy()
    wanted = np.concatenate([sigmas, timesteps / np.float32(1000) if flux else timesteps])
    if options["use_dynamic_shifting"] or spacing:  # powers and exponentials, which numpy rounds by the CPU
        assert np.allclose(found, wanted, rtol=3e-7, atol=0)
    else:
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("steps", [2, 3, 9, 28])
def test_sigmas_spaced_by_beta_lie_where_the_distribution_has_their_shares(parts: Path, steps: int) -> None:
    """Against mpmath's own incomplete beta function: diffusers takes scipy's inverse of it."""
    import mpmath

    found = said(parts, "schedule", 144, steps, "use_beta_sigmas=1", "shift=1")
    most, least = 1.0, float(np.float32(1) / np.float32(1000))
    for share, sigma in zip(1 - np.linspace(0, 1, steps), found[:steps], strict=True):
        place = (float(sigma) - least) / (most - least)
        assert abs(float(mpmath.betainc(0.6, 0.6, 0, max(place, 0), regularized=True)) - share) < 1e-4 + 1e-5 * share
        inverse = (
            mpmath.findroot(
                lambda x, share=share: mpmath.betainc(0.6, 0.6, 0, x, regularized=True) - share,
                (1e-12, 1 - 1e-12),
                solver="anderson",
            )
            if 0 < share < 1
            else share
        )
        assert float(sigma) == pytest.approx(least + float(inverse) * (most - least), abs=1e-7)
