"""Stable Diffusion 3's transformer in diffusers alone: a second opinion on the peers of `accelaes-export profile`.

    python benchmarks/peers/sd3_alone.py --threads 1                                     # diffusers eager
    python benchmarks/peers/sd3_alone.py --threads 1 --way compile                       # torch.compile
    python benchmarks/peers/sd3_alone.py --threads 1 --way taylorseer-lite --after 27    # diffusers' own cache

Nothing of this project is imported: weights, loop and clock are diffusers', torch's and Python's. Prints the whole
denoise in milliseconds, median with the 10th to 90th percentile, to be held against the same row of the profile.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig, apply_taylorseer_cache
from diffusers.models.cache_utils import CacheMixin

SHAPES = Path(__file__).parents[2] / "engines/checkpoints/shapes/transformer"
WAYS = ("eager", "compile", "taylorseer-lite")


def prepared(options: argparse.Namespace) -> tuple[Any, Any]:
    """The model, and what is to be called in its place."""
    dtype = getattr(torch, options.dtype)
    model: Any = SD3Transformer2DModel.from_pretrained(options.transformer, torch_dtype=dtype).to(options.device)
    model.eval().requires_grad_(False)
    if options.way == "compile":
        return model, torch.compile(model, dynamic=False)
    if options.way == "taylorseer-lite":
        last = model.transformer_blocks[-1]
        own = last.forward

        def with_text(hidden_states: Any, encoder_hidden_states: Any, **rest: Any) -> Any:
            # The last block returns None for its text, of which TaylorSeer asks the dtype.
            return encoder_hidden_states, own(hidden_states, encoder_hidden_states, **rest)[1]

        last.forward = with_text
        config = TaylorSeerCacheConfig(
            cache_interval=options.interval,
            disable_cache_before_step=options.before,
            disable_cache_after_step=options.after,
            max_order=1,
            use_lite_mode=True,
            taylor_factors_dtype=dtype,
        )
        apply_taylorseer_cache(model, config)
    return model, model


def denoise(model: Any, called: Any, options: argparse.Namespace, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """T Euler steps of a flow from noise, with classifier-free guidance."""
    HookRegistry.check_if_exists_or_initialize(model).reset_stateful_hooks(recurse=True)
    x, T = inputs["noise"], options.steps
    with torch.no_grad():
        for i in range(T):
            sigma, following = 1 - i / T, 1 - (i + 1) / T
            t = torch.full((2 * options.batch,), 1000 * sigma, device=options.device)
            with CacheMixin.cache_context(model, "cond"):
                predicted = called(
                    hidden_states=torch.cat([x, x]).to(model.dtype),
                    timestep=t,
                    encoder_hidden_states=inputs["text"],
                    pooled_projections=inputs["pooled"],
                    return_dict=False,
                )[0]
            uncond, cond = predicted.float().chunk(2)
            x = x + (following - sigma) * (uncond + options.guidance * (cond - uncond))
    return x


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformer", type=Path, default=SHAPES, help="a folder in diffusers' format")
    parser.add_argument("--way", choices=WAYS, default="eager")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, help="also the number of CPUs this process keeps to")
    parser.add_argument("--cells", type=int, nargs=2, default=(24, 24), help="latent height and width")
    parser.add_argument("--text", type=int, default=40, help="text tokens M")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=4.5)
    parser.add_argument("--before", type=int, default=5, help="TaylorSeer: steps always computed")
    parser.add_argument("--interval", type=int, default=2)
    parser.add_argument("--after", type=int, help="from this step on all are computed")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    model, called = prepared(options)
    config, rows = model.config, 2 * options.batch
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "noise": (options.batch, config.in_channels, *options.cells),
        "text": (rows, options.text, config.joint_attention_dim),
        "pooled": (rows, config.pooled_projection_dim),
    }
    inputs = {name: torch.randn(shape, generator=draw).to(options.device) for name, shape in shapes.items()}
    inputs |= {name: inputs[name].to(model.dtype) for name in ("text", "pooled")}
    seconds = []
    for _ in range(1 + options.warmup + options.rounds):
        started = time.perf_counter()
        denoise(model, called, options, inputs)
        if options.device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    measured = sorted(1e3 * t for t in seconds[1 + options.warmup :])
    tenth = statistics.quantiles(measured, n=10, method="inclusive") if len(measured) > 1 else measured * 9
    print(f"{options.way}: {statistics.median(measured):.4g} ms ({tenth[0]:.4g}-{tenth[8]:.4g})")
    return measured


if __name__ == "__main__":
    main()
