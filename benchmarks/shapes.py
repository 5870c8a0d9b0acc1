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
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import accelaes_export as ax
from accelaes_export.backends.base import Session
from accelaes_export.bundle.reading import Bundle
from accelaes_export.graph.focus_step import example_inputs
from accelaes_export.measure.profiling.buckets import step_tensors
from accelaes_export.policies import AccelAes, Dense, StepCache
from accelaes_export.runtime.generate import load_pipeline
from benchmarks.shapes_quality import RandomFocus, heldout
from benchmarks.shapes_runs import (
    BATCH,
    Case,
    denoise_times,
    interleaved,
    machine,
    masks,
    quality,
    sample,
    show,
    spread,
    write_figures,
)


def cases(bundle: Bundle) -> dict[str, Case]:
    """The policies compared; fewer dense steps are what any policy must beat at its cost."""
    return {
        "dense, 28 steps": Case(bundle, Dense()),
        "dense, 17 steps": Case(bundle, Dense(), 17),
        "dense, 14 steps": Case(bundle, Dense(), 14),
        "stepcache": Case(bundle, StepCache()),
        "accelaes p = .5": Case(bundle, AccelAes()),
        "accelaes p = .75": Case(bundle, AccelAes(skip_ratio=0.75)),
        "accelaes p = .5, random mask": Case(bundle, RandomFocus()),
        "accelaes p = .5, never refreshed": Case(bundle, AccelAes(refresh_every=0)),
    }


def step_times(bundle: Bundle, rounds: int) -> list[dict[str, Any]]:
    """One focus step by bucket; the model in eager diffusers and under torch.compile beside it."""
    geometry, session = bundle.manifest.geometry, bundle.session()
    contract, flops = geometry.contract, geometry.bucket_flops
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
                "flops_of_dense": flops[n] / flops[contract.tokens],
            }
        )
    return rows


def engine_step(session: Session, n: int) -> Callable[[], None]:
    """One call of bucket n with what most of a run's calls read and write."""
    tensors = step_tensors(session, n)
    return lambda: session.run(tensors.inputs, tensors.outputs)


def eager_model(bundle: Bundle) -> tuple[Any, Any]:
    """The checkpoint's transformer, as it is and compiled."""
    from accelaes_export.building.verification import source_model

    model = source_model(bundle.manifest)
    return model, torch.compile(model)


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
            figures["denoise"] = denoise_times(cases(bundle), options.rounds)
            show("Whole denoise", figures["denoise"])
        if "parity" in wanted:
            figures["parity"] = parity(bundle)
            show("Dense policy against the untouched pipeline", figures["parity"])
        if "quality" in wanted:
            wide = ax.build(model="shapes", batch=BATCH, output=Path(folder) / "wide")
            figures["quality"] = quality(cases(wide), options.prompts)
            show("Quality on held-out prompts", figures["quality"])
            figures["mask"] = masks(wide, options.prompts)
            show("AesMask against the described object", figures["mask"])
    if options.output:
        if options.output.exists():  # tables not made now stay as they were
            figures = json.loads(options.output.read_text(encoding="utf-8")) | figures
        write_figures(options.output, figures)


if __name__ == "__main__":
    main()
