"""Parts of the library by themselves: the noise of a seed against torch's CPU generator, to the bit; schedules."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.native.building import SOURCES, missing

OWN = ("device", "host", "manifest_components", "manifest_reading", "noise", "schedule", "solver")
AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")  # whose rounding it is


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if missing():
        pytest.skip(f"{missing()} isn't here")
    program = tmp_path_factory.mktemp("parts") / "parts"
    own = [SOURCES / "src" / f"{name}.cpp" for name in OWN]
    sources = [Path(__file__).with_name("parts.cpp"), *own]
    folders = ["-I", SOURCES / "src", "-I", SOURCES / "include"]
    wide = [
        "-O3",
        "-march=native",
        "-D_GLIBCXX_ASSERTIONS",
        "-ffp-contract=off",
    ]  # what rounds twice must do so with all of a CPU's instructions
    subprocess.run(["g++", "-std=c++17", *wide, *folders, *sources, "-o", program], check=True)
    return program


def drawn(program: Path, seed: int, *sizes: int) -> list[np.ndarray]:
    return np.split(said(program, "numbers", seed, *sizes), np.cumsum(sizes)[:-1])


@pytest.mark.parametrize(("number", "dtype"), [(10, torch.float16), (16, torch.bfloat16)])
def test_numbers_of_16_bits_are_rounded_as_torch_does(parts: Path, number: int, dtype: torch.dtype) -> None:
    """All that there are, and fp32 of any bits: halfway cases, subnormals, infinities, and what is no number."""
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).float().numpy()
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        middle = ((halves[1:].astype(np.float64) + halves[:-1]) / 2).astype(np.float32)
        given = np.concatenate([halves, bits, middle, np.nextafter(middle, np.inf), bits / np.float32(2**100)])
    made = subprocess.run(
        [str(parts), "halves", str(number), str(given.size)], input=given.tobytes(), capture_output=True, check=True
    )
    found, wanted = np.frombuffer(made.stdout, np.float32), torch.from_numpy(given).to(dtype).float().numpy()
    assert np.array_equal(found, wanted, equal_nan=True) and np.array_equal(np.signbit(found), np.signbit(given))


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


def components(pipeline: str, kind: str, config: dict[str, Any]) -> bytes:
    """What a manifest says of a pipeline's scheduler."""
    index = {"_class_name": pipeline, "scheduler": ["diffusers", kind]}
    none = {"cleaning": "none", "tokenizers": {}, "encoders": {}, "conditioning": None}
    return json.dumps({"geometries": [{}], "components": {"pipeline": index, "scheduler": config, **none}}).encode()


def solved(
    program: Path, pipeline: str, scheduler: Any, steps: int, tokens: int = 144
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Sigmas and timesteps, and the latents after every step."""
    if isinstance(scheduler, tuple):
        kind, config = scheduler
    else:
        written = {name: value for name, value in scheduler.config.items() if value not in (math.inf, -math.inf)}
        kind, config = type(scheduler).__name__, written
    command = [str(program), "solver", str(tokens), str(steps)]
    made = subprocess.run(command, input=components(pipeline, kind, config), capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()
    numbers = np.frombuffer(made.stdout, np.float32)
    rows = numbers[len(numbers) - 64 * steps :].reshape(steps, 64)
    return numbers[: len(numbers) - 64 * steps], list(rows)


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
    found, _ = solved(parts, "FluxPipeline" if flux else "StableDiffusion3Pipeline", scheduler, steps, tokens)
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

    config = {"use_beta_sigmas": True, "shift": 1.0}  # diffusers makes none without scipy
    found, _ = solved(parts, "StableDiffusion3Pipeline", ("FlowMatchEulerDiscreteScheduler", config), steps, 144)
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


def walked(scheduler: Any, steps: int) -> list[np.ndarray]:
    """The latents after every step of diffusers' scheduler, predicted as parts.cpp does."""
    latents, made = torch.arange(64).float() * 0.1 - 3.0, []
    scheduler.set_timesteps(steps)
    for i, timestep in enumerate(scheduler.timesteps):
        latents = scheduler.step(torch.cos(latents + i), timestep, latents, return_dict=False)[0]
        made.append(latents.numpy())
    return made


DIFFUSION = {
    "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2"]),
    "num_train_timesteps": st.sampled_from([1000, 400]),
    "timestep_spacing": st.sampled_from(["linspace", "leading", "trailing"]),
    "steps_offset": st.sampled_from([0, 1]),
    "prediction_type": st.sampled_from(["epsilon", "sample", "v_prediction"]),
}


@settings(max_examples=80, deadline=None)
@given(
    options=st.fixed_dictionaries(
        DIFFUSION
        | {
            "clip_sample": st.booleans(),
            "clip_sample_range": st.sampled_from([1.0, 2.5]),
            "set_alpha_to_one": st.booleans(),
        }
    ),
    steps=st.sampled_from([2, 4, 8, 20, 25, 50, 100]),
)
def test_ddim_goes_where_diffusers_goes(parts: Path, options: dict[str, Any], steps: int) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**options)
    wanted = walked(scheduler, steps)
    timesteps, found = solved(parts, "DiTPipeline", scheduler, steps)
    assert timesteps.tolist() == scheduler.timesteps.tolist()
    require_near(found, wanted)


@settings(max_examples=120, deadline=None)
@given(
    options=st.fixed_dictionaries(
        DIFFUSION
        | {
            "solver_order": st.sampled_from([1, 2]),
            "solver_type": st.sampled_from(["midpoint", "heun"]),
            "lower_order_final": st.booleans(),
            "euler_at_final": st.booleans(),
            "final_sigmas_type": st.sampled_from(["zero", "sigma_min"]),
        }
    ),
    steps=st.sampled_from([2, 4, 8, 14, 16, 20, 25, 50]),
)
def test_dpm_solver_goes_where_diffusers_goes(parts: Path, options: dict[str, Any], steps: int) -> None:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(**options)
    wanted = walked(scheduler, steps)
    schedule, found = solved(parts, "PixArtAlphaPipeline", scheduler, steps)
    assert schedule[steps + 1 :].tolist() == scheduler.timesteps.tolist()
    assert np.allclose(schedule[: steps + 1], scheduler.sigmas.numpy(), rtol=2e-5)
    require_near(found, wanted)


def require_near(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    """Latents of one size: betas near 1 make the first of a few steps' rounding large."""
    assert len(found) == len(wanted)
    for own, reference in zip(found, wanted, strict=True):
        assert np.abs(own - reference).max() <= 2e-4 * max(1.0, np.abs(reference).max())


@pytest.mark.parametrize(
    ("pipeline", "kind", "config", "said"),
    [
        ("DiTPipeline", "DDIMScheduler", {"thresholding": True}, "DDIMScheduler with thresholding"),
        ("DiTPipeline", "DDIMScheduler", {"beta_schedule": "x"}, 'DDIMScheduler with beta_schedule "x"'),
        ("PixArtAlphaPipeline", "DPMSolverMultistepScheduler", {"solver_order": 3}, "of the order 3"),
        (
            "PixArtAlphaPipeline",
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
            'algorithm_type "sde-dpmsolver++", use_karras_sigmas',
        ),
        ("StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "stochastic"),
        ("LuminaPipeline", "FlowMatchEulerDiscreteScheduler", {}, "sigmas as LuminaPipeline gives them"),
        ("StableDiffusion3Pipeline", "DDIMScheduler", {}, "DDIMScheduler as StableDiffusion3Pipeline calls it"),
        ("PixArtAlphaPipeline", "UniPCMultistepScheduler", {}, "UniPCMultistepScheduler"),
        ("DiTPipeline", "DDIMScheduler", {"num_train_timesteps": 10}, "10 timesteps, too few for 20 steps"),
        ("DiTPipeline", "DDIMScheduler", {"beta_end": 3}, "betas, timesteps or an order that is none"),
    ],
)
def test_a_foreign_scheduler_is_told_in_a_sentence(parts, pipeline, kind, config, said):
    made = subprocess.run(
        [parts, "solver", "144", "20"], input=components(pipeline, kind, config), capture_output=True, check=False
    )
    assert said in made.stderr.decode() and made.returncode != 0
