"""What a dense step of Stable Diffusion 3's width costs on this CPU, by who generates its kernels.

    OMP_NUM_THREADS=1 python -m benchmarks.kernels

builds three blocks of SD3-medium at 256 x 256 pixels in fp32 with random weights: for ONNX Runtime, and with
AOTInductor, weights beside the package and frozen into it. All of them and the diffusers model, eager and compiled,
take turns in rounds. Memory is what opening an engine adds to the process for good: pages that a file on disk backs
can be dropped and are left out.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from accelaes_export import recipes
from accelaes_export.backends.base import Session
from accelaes_export.building import builder
from accelaes_export.building.verification import source_model
from accelaes_export.bundle.reading import Bundle
from accelaes_export.cli.progress import TerminalProgress
from accelaes_export.cli.terminal import progress_lines
from accelaes_export.contract.example_inputs import example_inputs
from accelaes_export.contract.tensors import FOCUS_PREDICTION
from accelaes_export.measure.profiling import machine
from accelaes_export.measure.profiling.timing import HostStopwatch, interleaved, ratios, spread
from accelaes_export.recipes import BuildRecipe

COMPILED = "torch.compile"
ENGINES = {
    "ONNX Runtime": {"backend": "onnxruntime"},
    "AOTInductor, weights beside": {"backend": "aoti", "targets": "cpu", "compiling": "no-freezing"},
    "AOTInductor, frozen": {"backend": "aoti", "targets": "cpu", "compiling": "freezing"},
}


def three_blocks() -> BuildRecipe:
    """SD3-medium with 3 of its 24 blocks, fp32, N = 256."""
    recipe = recipes.load("sd3")
    config = recipe.architecture() | {"num_layers": 3}
    changed = recipe.model_copy(update={"transformer_config": config})
    return changed.override(dtype="fp32", resolution="256x256", buckets=(0.5,))


def opened(bundle: Bundle) -> tuple[Session, float]:
    """The session, and the bytes of memory it keeps: anonymous, as no file backs them."""
    gc.collect()
    before = _anonymous()
    session = bundle.session()
    return session, _anonymous() - before


def _anonymous() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/kernels.json"))
    parser.add_argument("--work", type=Path, default=Path("engines/built/kernels"), help="where bundles are kept")
    parser.add_argument("--rounds", type=int, default=10)
    asked = parser.parse_args()
    recipe, progress = three_blocks(), TerminalProgress(progress_lines())
    bundles = {
        name: builder.build(model=recipe, output=asked.work / f"{k}", random_weights=True, progress=progress, **options)
        for k, (name, options) in enumerate(ENGINES.items())
    }
    with machine.pinned_threads() as threads:
        figures = measured(bundles, asked.rounds)
        figures["machine"] = machine.describe(torch.device("cpu"), threads)
    asked.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    show(figures)


def measured(bundles: dict[str, Bundle], rounds: int) -> dict[str, Any]:
    """Times and memory by name."""
    manifest = bundles["ONNX Runtime"].manifest
    contract = manifest.geometry.contract
    inputs = example_inputs(contract, contract.tokens, observed=False)
    call = {name: inputs[name] for name in ("hidden_states", "timestep", *contract.conditioning)}
    sessions = {name: opened(bundle) for name, bundle in bundles.items()}
    model = source_model(manifest)
    compiled = torch.compile(model, dynamic=False)
    shape = contract.output_shapes(contract.sizes(contract.tokens))[FOCUS_PREDICTION]
    output = {FOCUS_PREDICTION: torch.empty(shape)}

    def step(session: Session) -> Callable[[], None]:
        return lambda: session.run(inputs, output)

    work: dict[str, Callable[[], object]] = {name: step(session) for name, (session, _) in sessions.items()}
    work |= {"diffusers, eager": lambda: model(**call), COMPILED: lambda: compiled(**call)}
    with torch.no_grad():
        timings = interleaved(work, HostStopwatch(), rounds=rounds, warmup=1)
    return {
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "rounds": rounds,
        "engines": {
            name: {
                "seconds": spread(timing.rounds).model_dump(),
                "compiled_over_this": ratios(timings[COMPILED], timing).model_dump(),
                "memory_bytes": sessions[name][1] if name in sessions else None,
            }
            for name, timing in timings.items()
        },
    }


def show(figures: dict[str, Any]) -> None:
    table = Table("dense step", "ms (p10-p90)", "torch.compile / this (p10-p90)", "memory / weights")
    for name, found in figures["engines"].items():
        ms = {key: 1e3 * value for key, value in found["seconds"].items()}
        over, memory = found["compiled_over_this"], found["memory_bytes"]
        table.add_row(
            name,
            f"{ms['median']:.0f} ({ms['p10']:.0f}-{ms['p90']:.0f})",
            f"{over['median']:.2f} ({over['p10']:.2f}-{over['p90']:.2f})",
            "" if memory is None else f"{memory / figures['weight_bytes']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
