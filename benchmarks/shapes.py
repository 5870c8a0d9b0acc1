"""Speed, quality and hit rate on the shipped checkpoint.

    python -m benchmarks.shapes --output benchmarks/results/shapes.json

Five tables, each ratio from one interleaved run on this machine:

    steps      time of one focus step by bucket, against its share of the dense step's FLOPs
    denoise    whole 28-step runs: each policy's time against dense, round by round
    quality    128 held-out prompts: objects the independent classifier reads back right, PSNR to dense 28 steps
    parity     latents of every dense step through the bundle, against the untouched diffusers pipeline
    mask       AesMask's focus tokens on the described object, against its ground-truth mask and against chance
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import accelaes_export as ax
from accelaes_export.backends.base import Session
from accelaes_export.bundle import Bundle
from accelaes_export.graph.focus_step import example_inputs
from accelaes_export.policies import AccelAes, Dense, StepCache
from accelaes_export.policies.base import Policy
from accelaes_export.policies.words import Scope
from accelaes_export.runtime.generate import load_pipeline
from benchmarks.shapes_quality import RandomFocus, attribute_accuracy, heldout, mask_figures, psnr

BATCH = 8  # images a call in the quality runs
console = Console()


def policies() -> dict[str, tuple[Policy, int]]:
    """Label to policy and number of steps; fewer dense steps are what any policy must beat at its cost."""
    return {
        "dense, 28 steps": (Dense(), 28),
        "dense, 17 steps": (Dense(), 17),
        "dense, 14 steps": (Dense(), 14),
        "stepcache": (StepCache(), 28),
        "accelaes p = .5": (AccelAes(), 28),
        "accelaes p = .75": (AccelAes(skip_ratio=0.75), 28),
        "accelaes p = .5, random mask": (RandomFocus(), 28),
        "accelaes p = .5, never refreshed": (AccelAes(refresh_every=0), 28),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, and the 10th and 90th percentile."""
    low, high = np.percentile(values, [10, 90])
    return {"median": statistics.median(values), "p10": float(low), "p90": float(high)}


def interleaved(work: dict[str, Callable[[], Any]], rounds: int, title: str) -> dict[str, list[float]]:
    """Seconds of every piece of work, one after the other in each round; one round before them warms up."""
    for piece in work.values():
        piece()
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in track(range(rounds), title, console=console):
        for name, piece in work.items():
            started = time.perf_counter()
            piece()
            times[name].append(time.perf_counter() - started)
    return times


def step_times(bundle: Bundle, rounds: int) -> list[dict[str, Any]]:
    """One focus step by bucket; the model in eager diffusers and under torch.compile beside it."""
    contract, session = bundle.manifest.contract, bundle.session()
    eager, compiled = eager_model(bundle)
    inputs = example_inputs(contract, contract.tokens)
    call = {name: inputs[name] for name in ("hidden_states", "timestep", *contract.conditioning)}

    def forward(model: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return model(**call, return_dict=False)[0]

        return run

    work: dict[str, Callable[[], Any]] = {f"n = {n}": engine_step(session, n) for n in contract.buckets}
    work |= {"diffusers eager": forward(eager), "diffusers torch.compile": forward(compiled)}
    times = interleaved(work, rounds, "steps")
    dense = times[f"n = {contract.tokens}"]
    rows = []
    for name, values in times.items():
        n = int(name.removeprefix("n = ")) if name.startswith("n = ") else contract.tokens
        rows.append(
            {
                "step": name,
                "milliseconds": spread([1e3 * t for t in values]),
                "of_dense_engine": spread([t / d for t, d in zip(values, dense, strict=True)]),
                "of_compiled": spread([t / d for t, d in zip(values, times["diffusers torch.compile"], strict=True)]),
                "flops_of_dense": bundle.manifest.bucket_flops[n] / bundle.manifest.bucket_flops[contract.tokens],
            }
        )
    return rows


def engine_step(session: Session, n: int) -> Callable[[], None]:
    """One call of bucket n with every output a run would fetch."""
    contract = session.contract
    inputs = example_inputs(contract, n)
    shapes = contract.output_shapes(contract.sizes(n))
    fetched = [s.name for s in contract.outputs if n == contract.tokens or s.name == "focus_prediction"]
    outputs = {name: torch.empty(shapes[name]) for name in fetched}
    return lambda: session.run(inputs, outputs)


def eager_model(bundle: Bundle) -> tuple[Any, Any]:
    """The checkpoint's transformer, as it is and compiled."""
    from accelaes_export.verification import source_model

    model = source_model(bundle.manifest)
    return model, torch.compile(model)


def denoise_times(bundle: Bundle, rounds: int) -> list[dict[str, Any]]:
    """Whole denoising runs through the pipeline, text encoding and VAE left out."""
    pipe = load_pipeline(bundle)
    pipe.set_progress_bar_config(disable=True)
    prompt = heldout(1)[0].caption
    chosen = policies()
    reports: dict[str, Any] = {}

    def run(label: str) -> Callable[[], None]:
        policy, steps = chosen[label]

        def once() -> None:
            ax.accelerate(pipe, bundle, policy)
            sample(pipe, [prompt], steps, bundle)
            reports[label] = pipe.transformer.report()

        return once

    seconds: dict[str, list[float]] = {label: [] for label in chosen}
    for label in chosen:
        run(label)()
    for _ in track(range(rounds), "denoise", console=console):
        for label in chosen:
            run(label)()
            seconds[label].append(reports[label].seconds)
    dense = seconds["dense, 28 steps"]
    flops = bundle.manifest.bucket_flops
    full = flops[bundle.manifest.contract.tokens]
    rows = []
    for label, values in seconds.items():
        report = reports[label]
        counted = sum(flops[step.n] for step in report.steps if step.n) / full
        rows.append(
            {
                "policy": label,
                "plan": str(report.plan),
                "token_steps": report.cost,
                "flop_limit": 28 / counted,
                "milliseconds": spread([1e3 * t for t in values]),
                "dense_over_this": spread([d / t for d, t in zip(dense, values, strict=True)]),
            }
        )
    return rows


def sample(
    pipe: Any,
    prompts: list[str],
    steps: int,
    bundle: Bundle,
    seed: int = 0,
    output: str = "latent",
    until: int | None = None,
    keep: list[torch.Tensor] | None = None,
) -> Any:
    """Pictures or latents of a batch; every prompt has a seed of its own.

    The run is cancelled after step `until`; the latents after every step are added to `keep`.
    """

    def after_step(pipeline: Any, i: int, _: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        pipeline._interrupt = i == until
        if keep is not None:
            keep.append(kwargs["latents"].clone())
        return kwargs

    latents = bundle.manifest.latents
    return pipe(
        prompts,
        height=latents.height * latents.vae_scale,
        width=latents.width * latents.vae_scale,
        num_inference_steps=steps,
        guidance_scale=bundle.manifest.defaults.guidance,
        generator=[torch.Generator().manual_seed(seed + k) for k in range(len(prompts))],
        max_sequence_length=bundle.manifest.text[-1].length,
        output_type=output,
        callback_on_step_end=after_step,
    ).images


def parity(bundle: Bundle) -> list[dict[str, Any]]:
    """Largest difference of the latents after each of 28 dense steps, over three prompts."""
    pipe = load_pipeline(bundle)
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer = eager_model(bundle)[0]

    def trajectories() -> torch.Tensor:
        kept: list[torch.Tensor] = []
        for k, prompt in enumerate(heldout(3)):
            sample(pipe, [prompt.caption], 28, bundle, seed=k, keep=kept)
        return torch.stack(kept)  # [3 * 28, 1, C, Hl, Wl]

    expected = trajectories()
    ax.accelerate(pipe, bundle, Dense())
    difference = (trajectories() - expected).abs()
    return [
        {"steps": len(expected), "max_abs": difference.max().item(), "latents_max_abs": expected.abs().max().item()}
    ]


def quality(bundle: Bundle, prompts: int) -> list[dict[str, Any]]:
    """Every policy on the held-out prompts."""
    pipe = load_pipeline(bundle)
    pipe.set_progress_bar_config(disable=True)
    scenes = heldout(prompts)
    pictures: dict[str, np.ndarray] = {}
    for label, (policy, steps) in policies().items():
        ax.accelerate(pipe, bundle, policy)
        parts = []
        for first in track(range(0, len(scenes), BATCH), label, console=console):
            batch = [scene.caption for scene in scenes[first : first + BATCH]]
            parts.append(sample(pipe, batch, steps, bundle, seed=1000 + first, output="np"))
        pictures[label] = np.concatenate(parts)
    rows = []
    for label, made in pictures.items():
        rows.append(
            {
                "policy": label,
                **attribute_accuracy(made, scenes),
                "psnr_to_dense": psnr(made, pictures["dense, 28 steps"]),
            }
        )
    return rows


def masks(bundle: Bundle, prompts: int) -> list[dict[str, Any]]:
    """Where the mask of step 5 lies, with the weights of noun phrases (ours) and of the word alone (the paper's)."""
    pipe = load_pipeline(bundle)
    pipe.set_progress_bar_config(disable=True)
    scenes = heldout(prompts)
    rows: list[dict[str, Any]] = []
    scopes: tuple[Scope, ...] = ("phrase", "word")
    for scope in scopes:
        policy = AccelAes(scope=scope)
        ax.accelerate(pipe, bundle, policy)
        affinity = []
        for first in track(range(0, len(scenes), BATCH), f"mask, {scope}", console=console):
            batch = [scene.caption for scene in scenes[first : first + BATCH]]
            sample(pipe, batch, 28, bundle, seed=1000 + first, until=policy.mask_step)
            affinity.append(pipe.transformer.report().affinity)
        rows.append({"weights": scope, **mask_figures(torch.cat(affinity), scenes, bundle.manifest)})
    return rows


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    packages = ("torch", "diffusers", "onnxruntime", "onnx", "onnxscript")
    return {
        "date": date.today().isoformat(),
        "cpu": model or platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
    }


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table of plain values; spreads as median and range."""
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        text = f"{value['median']:.3g} ({value['p10']:.3g}-{value['p90']:.3g})"
        return f"{value['of_mean_error']:.1f}; {text}" if "of_mean_error" in value else text
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--only", choices=("steps", "denoise", "parity", "quality"), action="append")
    options = parser.parse_args()
    wanted = options.only or ["steps", "denoise", "parity", "quality"]
    figures: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        bundle = ax.build(model="shapes", output=Path(folder) / "single")
        if "steps" in wanted:
            figures["steps"] = step_times(bundle, options.rounds)
            show("One focus step", figures["steps"])
        if "denoise" in wanted:
            figures["denoise"] = denoise_times(bundle, options.rounds)
            show("Whole denoise", figures["denoise"])
        if "parity" in wanted:
            figures["parity"] = parity(bundle)
            show("Dense policy against the untouched pipeline", figures["parity"])
        if "quality" in wanted:
            wide = ax.build(model="shapes", batch=BATCH, output=Path(folder) / "wide")
            figures["quality"] = quality(wide, options.prompts)
            show("Quality on held-out prompts", figures["quality"])
            figures["mask"] = masks(wide, options.prompts)
            show("AesMask against the described object", figures["mask"])
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        if options.output.exists():  # tables not made now stay as they were
            figures = json.loads(options.output.read_text(encoding="utf-8")) | figures
        options.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
