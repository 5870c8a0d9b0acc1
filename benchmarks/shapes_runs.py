"""Whole runs of the shipped checkpoint: their time, their pictures, and how both are shown."""

from __future__ import annotations

import inspect
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

import accelaes_export as ax
from accelaes_export.bundle.reading import Bundle
from accelaes_export.measure.profiling import policies, timing
from accelaes_export.policies import AccelAes, Policy
from accelaes_export.policies.words import Scope
from accelaes_export.runtime.generate import call_arguments, load_pipeline
from benchmarks.shapes_quality import attribute_accuracy, heldout, mask_figures, psnr

BATCH = 8  # images a call in the quality runs
console = Console()


@dataclass(frozen=True)
class Case:
    """A policy on a bundle, for a number of steps."""

    bundle: Bundle
    policy: Policy
    steps: int = 28


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and the 10th and 90th percentile."""
    return timing.spread(values).model_dump(include={"median", "p10", "p90"})


def interleaved(work: Mapping[str, Callable[[], Any]], rounds: int, title: str) -> dict[str, list[float]]:
    """Seconds of every piece of work, in turns; one round before them warms up."""
    with Progress(console=console) as bar:
        task = bar.add_task(title, total=1.0)
        timings = timing.interleaved(
            work,
            timing.HostStopwatch(),
            rounds=rounds,
            warmup=1,
            progress=lambda done, _: bar.update(task, completed=done),
        )
    return {name: one.rounds for name, one in timings.items()}


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

    manifest = bundle.manifest
    arguments = call_arguments(pipe, manifest, prompts[0], steps=steps, guidance=manifest.defaults.guidance, seed=seed)
    arguments |= {"prompt": prompts, "output_type": output}
    arguments |= {"generator": [torch.Generator().manual_seed(seed + k) for k in range(len(prompts))]}
    if until is not None or keep is not None:
        arguments |= {"callback_on_step_end": after_step}
    return pipe(**arguments).images


def denoise_times(cases: Mapping[str, Case], rounds: int) -> list[dict[str, Any]]:
    """Whole denoising runs through the pipeline, text encoding and VAE left out; the first case is what all others
    are compared with, round by round."""
    pipe = pipeline_of(cases)
    prompt = heldout(1)[0].caption
    reports: dict[str, Any] = {}

    def run(label: str) -> None:
        case = cases[label]
        ax.accelerate(pipe, case.bundle, case.policy)
        sample(pipe, [prompt], case.steps, case.bundle)
        reports[label] = pipe.transformer.report()

    seconds: dict[str, list[float]] = {label: [] for label in cases}
    for label in cases:
        run(label)
    for _ in track(range(rounds), "denoise", console=console):
        for label in cases:
            run(label)
            seconds[label].append(reports[label].seconds)
    reference = next(iter(seconds.values()))
    rows = []
    for label, values in seconds.items():
        report, case = reports[label], cases[label]
        cost = flop_cost(report, case.bundle)
        rows.append(
            {
                "policy": label,
                "plan": str(report.plan),
                "token_steps": report.cost,
                "flop_cost": cost,
                "flop_limit": case_cost(reports, cases) / cost,
                "milliseconds": spread([1e3 * t for t in values]),
                "dense_over_this": spread([d / t for d, t in zip(reference, values, strict=True)]),
            }
        )
    return rows


def case_cost(reports: Mapping[str, Any], cases: Mapping[str, Case]) -> float:
    """The first case's cost, which the others are compared with."""
    label = next(iter(cases))
    return flop_cost(reports[label], cases[label].bundle)


def flop_cost(report: Any, bundle: Bundle) -> float:
    """A run's counted FLOPs in dense steps."""
    return policies.flop_cost(report, bundle.manifest.geometry)


def pipeline_of(cases: Mapping[str, Case]) -> Any:
    """The pipeline all cases share."""
    pipe = load_pipeline(next(iter(cases.values())).bundle)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def quality(cases: Mapping[str, Case], prompts: int) -> list[dict[str, Any]]:
    """Every case on the held-out prompts; PSNR to the first case's pictures."""
    pipe = pipeline_of(cases)
    scenes = heldout(prompts)
    pictures: dict[str, np.ndarray] = {}
    costs: dict[str, float] = {}
    for label, case in cases.items():
        ax.accelerate(pipe, case.bundle, case.policy)
        parts = []
        for first in track(range(0, len(scenes), BATCH), label, console=console):
            batch = [scene.caption for scene in scenes[first : first + BATCH]]
            parts.append(sample(pipe, batch, case.steps, case.bundle, seed=1000 + first, output="np"))
        pictures[label] = np.concatenate(parts)
        costs[label] = flop_cost(pipe.transformer.report(), case.bundle)
    reference = next(iter(pictures.values()))
    return [
        {
            "policy": label,
            "flop_cost": costs[label],
            **attribute_accuracy(made, scenes),
            "psnr_to_dense": psnr(made, reference),
        }
        for label, made in pictures.items()
    ]


def masks(bundle: Bundle, prompts: int) -> list[dict[str, Any]]:
    """Where the mask of step 5 lies, with the weights of noun phrases (ours) and of the word alone (the paper's)."""
    pipe = load_pipeline(bundle)
    pipe.set_progress_bar_config(disable=True)
    scenes = heldout(prompts)
    stops = "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters  # others run to the end
    rows: list[dict[str, Any]] = []
    scopes: tuple[Scope, ...] = ("phrase", "word")
    for scope in scopes:
        policy = AccelAes(scope=scope, refresh_every=0)
        ax.accelerate(pipe, bundle, policy)
        affinity = []
        for first in track(range(0, len(scenes), BATCH), f"mask, {scope}", console=console):
            batch = [scene.caption for scene in scenes[first : first + BATCH]]
            sample(pipe, batch, 28, bundle, seed=1000 + first, until=policy.mask_step if stops else None)
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


def write_figures(path: Path, figures: Mapping[str, Any]) -> None:
    """As JSON; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


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
