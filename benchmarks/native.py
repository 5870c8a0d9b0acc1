"""The native runtime against Python's, on the same engine and inputs: presets of a bundle take turns, run by run.

    cmake -S engines/cpp -B build/native -G Ninja && cmake --build build/native
    python -m benchmarks.native build/native/libaccelaes.so engines/built/shapes --rounds 20

Both walk from noise to latents: text and picture aren't made. Printed are the medians of the rounds, and of their
ratios with the 10th to 90th percentile; "outside" is what a step takes outside the engine, of its whole time: on a CPU,
as a GPU's work is only queued by the calls that are timed. Natively that is all of a step; in Python a pipeline guides
and takes the scheduler's step, so what the denoiser itself takes is told apart. With `--device cuda` both are on the
GPU; a bundle of AOTInductor runs with this torch, and the code of such a bundle is run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch

import accelaes_export as ax
from accelaes_export.measure.profiling.timing import spread
from accelaes_export.runtime.denoiser import Denoiser
from tests.native.library import Native, NativeBundle
from tests.native.reference import Setting, setting, walk

THREADS = torch.get_num_threads()


def engine_library(bundle: ax.Bundle) -> Path:
    """Of its backend, among this environment's packages."""
    if bundle.manifest.backend.name == "aoti":
        return Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))


class Clock:
    """Seconds that the calls of a function took, which it stands for."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.seconds = 0.0
        self._function = function

    def __call__(self, *args: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        found = self._function(*args, **options)
        self.seconds += time.perf_counter() - begun
        return found


def natively(opened: NativeBundle, given: Setting) -> tuple[float, float]:
    """Seconds of a run, and of its engine calls."""
    run = opened.run(
        given.sigmas, given.timesteps, preset=given.preset.name.encode(), plan=given.plan.encode(), guidance=given.scale
    )
    engine, more, begun = 0.0, True, time.perf_counter()
    run.input(**given.inputs)
    while more:
        step, more = run.next()
        engine += step.engine_seconds
    run.latents()  # waits for a GPU
    total = time.perf_counter() - begun
    run.free()
    return total, engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    bundle = ax.open(given.bundle, allow_code=True)
    opened = Native(given.library).open(
        given.bundle,
        library=str(engine_library(bundle)).encode(),
        threads=THREADS,
        device=given.device.encode(),
        allow_code=1,
    )
    session = bundle.session()
    engine = session.run = Clock(session.run)  # type: ignore[method-assign]
    denoiser = Clock(Denoiser.step)
    Denoiser.step = lambda *args, **options: denoiser(*args, **options)  # type: ignore[method-assign]
    for preset in bundle.manifest.geometry.presets:
        case = setting(bundle, preset, preset.plans[preset.steps], seed=1)
        python: list[tuple[float, float]] = []
        inside: list[float] = []
        native: list[tuple[float, float]] = []
        for k in range(2 + given.rounds):
            for side in ("python", "native") if k % 2 else ("native", "python"):
                if side == "native":
                    native.append(natively(opened, case))
                    continue
                engine.seconds = denoiser.seconds = 0.0
                begun = time.perf_counter()
                for _ in walk(bundle, case, watched=False):
                    pass
                python.append((time.perf_counter() - begun, engine.seconds))
                inside.append(1e3 * (denoiser.seconds - engine.seconds) / preset.steps)
        python, native, inside = python[2:], native[2:], inside[2:]  # the first two warm up
        ratio = spread([own[0] / other[0] for own, other in zip(native, python, strict=True)])
        outside = [
            spread([1e3 * (whole - engine) / preset.steps for whole, engine in side]) for side in (python, native)
        ]
        share = spread([(whole - engine) / whole for whole, engine in native])
        mine = f"outside {outside[0].median:.2f} ms a step (denoiser {spread(inside).median:.2f})"
        print(
            f"{preset.name:20.20s} python {1e3 * spread([w for w, _ in python]).median:6.1f} ms, {mine}; "
            f"native {1e3 * spread([w for w, _ in native]).median:6.1f} ms, outside "
            f"{outside[1].median:.2f} ({share.median:.1%}); native/python {ratio.median:.2f} "
            f"({ratio.p10:.2f} to {ratio.p90:.2f})"
        )


if __name__ == "__main__":
    main()
