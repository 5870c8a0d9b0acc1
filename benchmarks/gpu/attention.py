"""The attention kernel on a GPU: correctness, time against the libraries, tiles. One call does all of it.

    python -m benchmarks.gpu.attention --output benchmarks/results/gpu-attention.json --tune --write-tables

Without a GPU, TRITON_INTERPRET=1 python -m benchmarks.gpu.attention --tiny shows that it works, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import accelaes_export.plugins.sparse_query_attention as plugin
from accelaes_export.files.writing import write_whole
from accelaes_export.plugins import leash
from accelaes_export.plugins.sparse_query_attention.compiling import compile_kernels
from accelaes_export.plugins.sparse_query_attention.cubins import Kernel, write_pack
from accelaes_export.plugins.sparse_query_attention.driver import Driver
from accelaes_export.plugins.sparse_query_attention.launching import Sizes, scratch_bytes
from accelaes_export.plugins.sparse_query_attention.tiles import Tile, choice, nearest_architecture, table
from benchmarks.gpu.attention_cases import (
    MODELS,
    TINY,
    Shape,
    error,
    kernel,
    libraries,
    microseconds,
    reference,
    shapes,
)
from benchmarks.gpu.attention_tuning import ALLOWED, sweep_tiles, tune, write_measurements, write_tiles

console = Console()


def correctness(shape: Shape, architecture: str, device: torch.device, folder: Path | None) -> dict[str, float]:
    """Largest errors of every candidate tile, compiled on the spot and (in `folder`) ahead of time.

    Each on tensors that lie in order, with a bias, and on views as projections leave them.
    """
    tiles = choice(architecture, shape.head_dim).candidates if device.type == "cuda" else (Tile(16, 16, 4, 2),)
    found: dict[str, float] = {}
    for label, kind in _KINDS.items():
        tensors = shape.tensors(device, **kind)
        wanted = reference(tensors)
        found |= {f"{tile}{label}": error(kernel(tensors, tile)(), wanted) for tile in tiles}
        if folder is not None and not kind.get("strided"):  # a row's length is a constant in kernels made beforehand
            made = _ahead_of_time(shape, architecture, tensors, wanted, folder)
            found |= {f"cubin {name}{label}": value for name, value in made}
    return found


_KINDS: dict[str, dict[str, bool]] = {
    "": {},
    " biased": {"biased": True},
    " strided": {"strided": True},
    " biased strided": {"biased": True, "strided": True},
}


def _ahead_of_time(
    shape: Shape, architecture: str, tensors: tuple[Any, ...], wanted: torch.Tensor, folder: Path
) -> list[tuple[str, float]]:
    """The same through cubins and the CUDA driver, as the TensorRT plugins launch them."""
    q, k, v, k_bg, v_bg, scale, *given = tensors
    bias = [added.contiguous() for added in given]
    tiles = choice(architecture, shape.head_dim).candidates
    variants = [Kernel(architecture, shape.dtype, shape.head_dim, bool(bias), tile) for tile in tiles]
    pack = folder / "kernels.cubins"
    write_pack(pack, compile_kernels(variants))
    driver = Driver.load(pack)
    read = (q, k, v, k_bg, v_bg)
    sizes = Sizes.of([tensor.shape for tensor in (*read, *bias)])
    scratch = torch.empty(scratch_bytes(sizes.batch, sizes.heads, sizes.queries), dtype=torch.uint8, device=q.device)
    found = []
    for cubin in driver.candidates(shape.dtype, shape.head_dim, bool(bias)):
        out = torch.full_like(q, torch.nan)
        added = bias[0].data_ptr() if bias else 0
        addresses = [*(tensor.data_ptr() for tensor in read), added, out.data_ptr()]
        driver.launch(cubin, sizes, scale, addresses, scratch.data_ptr(), torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        found.append((str(cubin.kernel.tile), error(out, wanted)))
    return found


def timing(shape: Shape, device: torch.device) -> dict[str, Any]:
    """Microseconds of the kernel and of every library, alone and with its concatenation."""
    tensors = shape.tensors(device)
    tile = None if device.type == "cuda" else Tile(16, 16, 4, 2)
    own = microseconds(kernel(tensors, tile), device)
    others = {
        name: {"alone": microseconds(alone, device), "with_concat": microseconds(with_concat, device)}
        for name, (alone, with_concat) in libraries(tensors).items()
    }
    return {"shape": vars(shape), "flops": shape.flops, "kernel": own, "libraries": others}


def show(rows: list[dict[str, Any]]) -> None:
    """The table for docs/benchmarks.md."""
    shown = Table(
        "shape", "n/N", "kernel us", "TFLOP/s", "best library", "alone", "with concat", "of its rate", "ahead"
    )
    for row in rows:
        shape, own = row["shape"], row["kernel"]
        name, best = best_library(row)
        alone = min((times["alone"] for times in row["libraries"].values()), default=float("nan"))
        shown.add_row(
            shape["model"],
            f"{shape['focus'] / shape['tokens']:.3g}",
            f"{own:.0f}",
            f"{row['flops'] / own / 1e6:.1f}",
            name,
            f"{alone:.0f}",
            f"{best:.0f}",
            f"{alone / own:.2f}",
            f"{best / own:.2f}",
        )
    console.print(shown)


def best_library(row: dict[str, Any]) -> tuple[str, float]:
    """The fastest library and its microseconds with the concatenation; infinity where there is none."""
    timed = ((times["with_concat"], name) for name, times in row["libraries"].items())
    spent, name = min(timed, default=(float("inf"), "none"))
    return name, spent


def measurement(row: dict[str, Any], architecture: str, gpu: str, versions: str) -> dict[str, Any]:
    """A row of the plugin's measured.json."""
    shape = row["shape"]
    name, spent = best_library(row)
    return {
        "architecture": architecture,
        "gpu": gpu,
        **{field: shape[field] for field in ("dtype", "head_dim", "tokens", "focus", "text")},
        "tile": str(choice(architecture, shape["head_dim"]).best),
        "kernel_us": round(row["kernel"], 1),
        "library_us": round(spent, 1),
        "library": name,
        "versions": versions,
    }


def sanitize(seconds: float) -> str:
    """What compute-sanitizer says of the correctness checks, where the machine has it, within some seconds."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).is_file():
        return "compute-sanitizer isn't on this machine"
    command = [program, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu.attention", "--check-only"]
    process = leash.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        leash.stop(process)
        return f"not finished within {seconds:.0f} s"
    return "clean" if process.returncode == 0 else f"exit code {process.returncode}: {said[-2000:]}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    parser.add_argument("--tune", action="store_true", help="sweep over tiles first")
    parser.add_argument("--write-tables", action="store_true", help="write what was found into the plugin's tables")
    parser.add_argument("--tables", type=Path, default=Path(plugin.__path__[0]), help="the folder of those tables")
    parser.add_argument("--check-only", action="store_true", help="correctness alone, of small pictures")
    parser.add_argument("--sanitize", action="store_true", help="run the checks once more under compute-sanitizer")
    parser.add_argument("--seconds", type=float, default=420, help="for everything; tuning takes half at most [420]")
    parser.add_argument("--tiny", action="store_true", help="one tiny shape, also on a CPU")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not options.tiny:
        sys.exit("error: this measures a GPU, and torch finds none; --tiny under TRITON_INTERPRET=1 tries the script.")
    device = torch.device("cuda" if on_gpu else "cpu")
    architecture = (nearest_architecture(*torch.cuda.get_device_capability()) if on_gpu else None) or "sm80"
    gpu = torch.cuda.get_device_name() if on_gpu else "no GPU, interpreted"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "triton"))
    wanted = list(shapes(TINY if options.tiny else MODELS))
    if options.check_only:
        wanted = [
            Shape(**{**vars(shape), "tokens": 512, "focus": 200}) for shape in wanted if shape.focus == shape.tokens
        ]
    figures = Figures(options.output, {"gpu": gpu, "architecture": architecture, "versions": versions})
    began = time.monotonic()

    def left() -> float:
        return options.seconds - (time.monotonic() - began)

    if options.tune:
        origin = f"measured on {gpu}, {versions}"
        _tune(wanted, architecture, device, options, origin, figures, lambda: left() < options.seconds / 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) if on_gpu else None
        for shape in wanted:
            errors = correctness(shape, architecture, device, folder)
            figures.add("errors", f"{shape.model} n={shape.focus}", errors)
            wrong = [name for name, value in errors.items() if not value <= ALLOWED[shape.dtype]]
            if wrong:
                sys.exit(f"error: {shape} is wrong by {errors[wrong[0]]:.2g} with {wrong[0]}.")
    console.print(f"Correct: {len(wanted)} shapes on {gpu}, each in order, biased and strided")
    if options.check_only:
        return
    rows: list[dict[str, Any]] = []
    for shape in wanted:
        if rows and left() < 0:
            console.print(f"{len(wanted) - len(rows)} shapes weren't timed: the time was up")
            break
        rows.append(timing(shape, device))
        figures.set("times", rows)
    show(rows)
    if options.write_tables:
        write_measurements(options.tables, [measurement(row, architecture, gpu, versions) for row in rows])
    if options.sanitize:
        figures.set("sanitizer", sanitize(max(left(), 30.0)))
        console.print(f"compute-sanitizer: {figures.values['sanitizer']}")


class Figures:
    """Everything found so far, on disk whenever there is more.

    Args:
        path: a JSON file, or None where nothing is to be kept.
        about: of the machine.
    """

    def __init__(self, path: Path | None, about: dict[str, Any]) -> None:
        self.values = about
        self._path = path

    def set(self, name: str, value: Any) -> None:
        self.values[name] = value
        if self._path is not None:
            write_whole(self._path, json.dumps(self.values, indent=1) + "\n")

    def add(self, name: str, key: str, value: Any) -> None:
        self.set(name, {**self.values.get(name, {}), key: value})


def _tune(
    wanted: list[Shape],
    architecture: str,
    device: torch.device,
    options: argparse.Namespace,
    origin: str,
    figures: Figures,
    out_of_time: Callable[[], bool],
) -> None:
    """Tiles by head size, over the dense shape and n = N/2, microseconds each; written into the table where asked."""
    for head_dim in dict.fromkeys(shape.head_dim for shape in wanted):
        mine = [s for s in wanted if s.head_dim == head_dim and s.focus in (s.tokens, s.tokens // 2)]
        console.print(f"Tiles for head size {head_dim}")
        small = [Tile(16, 16, 4, 2), Tile(16, 32, 4, 2)]
        tiles = sweep_tiles(architecture, head_dim) if device.type == "cuda" else small
        ranked = tune(mine, tiles, device, console.print, out_of_time)
        if not ranked:
            sys.exit(f"error: no tile works for head size {head_dim} on {architecture}.")
        figures.add("tiles", str(head_dim), {str(tile): spent for spent, tile in ranked})
        if options.write_tables:
            write_tiles(options.tables, architecture, head_dim, ranked, origin)
    table.cache_clear()  # later steps go by what was written


if __name__ == "__main__":
    main()
