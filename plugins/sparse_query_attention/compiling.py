"""Ahead of time: the kernel's variants compiled to cubins by Triton, on any machine, in worker processes.

Every cubin is kept by the hash of what it follows from, so a variant is compiled once. Workers are processes of their
own: Triton compiles on one core, keeps what it made, and may have been imported to interpret kernels in this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelaes_export.plugins import leash
from accelaes_export.plugins.sparse_query_attention.cubins import Cubin, Kernel, cache_folder, source_hash
from accelaes_export.plugins.sparse_query_attention.errors import PluginError
from accelaes_export.plugins.sparse_query_attention.launching import PARAMETERS
from accelaes_export.plugins.sparse_query_attention.tiles import Tile, parts, shared_bytes

Progress = Callable[[int, int, str], None]
"""Called with how many variants are done, of how many, and the last one's name."""

POINTERS = ("q", "k", "v", "k_bg", "v_bg", "bias", "out")
SIZES = ("queries", "keys", "background", "group")
ROW_STRIDES = ("q_row", "k_row", "v_row", "kb_row", "vb_row", "out_row")


def compile_kernels(
    wanted: Sequence[Kernel], *, jobs: int | None = None, progress: Progress | None = None
) -> tuple[Cubin, ...]:
    """The cubins of `wanted`, in its order; those compiled before are read from the cache.

    Args:
        jobs: worker processes; one a core if None.

    Raises MissingError without Triton, PluginError for a variant that doesn't compile or doesn't fit its GPU.
    """
    folder = cache_folder() / source_hash()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    missing = [kernel for kernel in dict.fromkeys(wanted) if not (folder / f"{kernel}.json").is_file()]
    done = len(dict.fromkeys(wanted)) - len(missing)
    total = done + len(missing)
    count = min(len(missing), jobs or os.cpu_count() or 1)
    failures: list[str] = []
    workers: list[subprocess.Popen[str]] = []
    raised: list[BaseException] = []
    lock = threading.Lock()

    def finished(line: dict[str, str]) -> None:
        nonlocal done
        with lock:
            done += 1
            if line["error"]:
                failures.append(f"{line['kernel']}: {line['error']}")
            if progress is not None:
                progress(done, total, line["kernel"])

    def work(share: Sequence[Kernel], scratch: str) -> None:
        try:
            _run_worker(share, folder, scratch, finished, failures, workers)
        except BaseException as error:  # the caller's own, from `progress`
            raised.append(error)

    with tempfile.TemporaryDirectory() as scratch:
        threads = [
            threading.Thread(target=work, args=(missing[index::count], scratch), daemon=True) for index in range(count)
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # a caller that goes away, with Ctrl-C or an exception, leaves no compiler behind
            for worker in workers:
                leash.stop(worker)
    if raised:
        raise raised[0]
    if failures:
        raise PluginError(f"{len(failures)} of {total} kernels did not compile; the first is {failures[0]}.")
    return tuple(_cached(folder, kernel) for kernel in wanted)


def compiled_before() -> tuple[Cubin, ...]:
    """Every kernel in the cache that this Triton made of this source."""
    folder = cache_folder() / source_hash()[:16]
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return tuple(_cached(folder, _from_json(fact["kernel"])) for fact in facts)


def _run_worker(
    share: Sequence[Kernel],
    folder: Path,
    scratch: str,
    finished: Callable[[dict[str, str]], None],
    failures: list[str],
    workers: list[subprocess.Popen[str]],
) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": scratch, "TRITON_DISABLE_LINE_INFO": "1"}
    environment.pop("TRITON_INTERPRET", None)
    work = {"folder": str(folder), "kernels": [_as_json(kernel) for kernel in share]}
    process = leash.start(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    workers.append(process)
    said: list[str] = []
    errors = process.stderr
    drain = threading.Thread(target=lambda: said.append(errors.read()), daemon=True)  # or its pipe would stop it
    drain.start()
    with contextlib.suppress(BrokenPipeError):  # it is gone already, and says why
        process.stdin.write(json.dumps(work))
        process.stdin.close()
    for line in process.stdout:
        finished(json.loads(line))
    drain.join()
    if process.wait():
        last = (said[0].strip().splitlines() or ["it said nothing"])[-1]
        failures.append(f"a worker that ended with {process.returncode} ({last[:300]})")


def compile_one(kernel: Kernel) -> Cubin:
    """Compile in this process.

    A row's length is a constant here: the plugin's tensors are contiguous, so strides of rows are hd, and loads are as
    wide as that allows.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from accelaes_export.plugins.sparse_query_attention.kernel import attention

    width, rest = parts(kernel.head_dim)
    constants: dict[str, Any] = {
        "HD": kernel.head_dim,
        "WIDTH": width,
        "REST": rest,
        "BLOCK_M": kernel.tile.queries,
        "BLOCK_N": kernel.tile.keys,
        "BIASED": kernel.biased,
        "DESCRIPTORS": kernel.tile.descriptors,
        **dict.fromkeys(ROW_STRIDES, kernel.head_dim),
    }
    signature, hints = {}, {}
    for index, name in enumerate(attention.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in POINTERS:
            signature[name] = f"*{kernel.dtype}"
            hints[(index,)] = [["tt.divisibility", 16]]
        elif name in SIZES:
            signature[name] = "i32"
        elif name == "scale":
            signature[name] = "fp32"
        else:  # strides of batch rows and heads
            signature[name] = "i64"
            if not name.startswith("bias"):
                hints[(index,)] = [["tt.divisibility", 16 if kernel.head_dim % 16 == 0 else 8]]
    positions = {(attention.arg_names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(
        ASTSource(attention, signature, constexprs=positions, attrs=hints),
        target=GPUTarget("cuda", int(kernel.architecture[2:]), 32),
        options={"num_warps": kernel.tile.warps, "num_stages": kernel.tile.stages},
    )
    facts = compiled.metadata
    limit = shared_bytes(kernel.architecture)
    if facts.shared > limit:
        raise PluginError(f"{kernel} needs {facts.shared} bytes of shared memory and a program has {limit} at most")
    if facts.num_warps != kernel.tile.warps or facts.profile_scratch_size:
        raise PluginError(f"{kernel} was compiled with {facts.num_warps} warps and a profile, not as its tile says")
    declared = compiled.asm["ptx"].count(".param ")
    if declared != len(PARAMETERS):
        raise PluginError(f"{kernel} takes {declared} parameters and launchers pass {len(PARAMETERS)}")
    return Cubin(kernel, kernel.best, facts.shared, facts.global_scratch_size, compiled.asm["cubin"])


def _cached(folder: Path, kernel: Kernel) -> Cubin:
    facts = json.loads((folder / f"{kernel}.json").read_text(encoding="utf-8"))
    image = (folder / f"{kernel}.cubin").read_bytes()
    return Cubin(kernel, kernel.best, facts["shared"], facts["scratch"], image)


def _as_json(kernel: Kernel) -> dict[str, Any]:
    return {**vars(kernel), "tile": str(kernel.tile)}


def _from_json(fields: dict[str, Any]) -> Kernel:
    return Kernel(**{**fields, "tile": Tile.parse(fields["tile"])})


def _work() -> None:
    """A worker: variants as JSON on its input, files in the cache, one line of JSON for each on its output."""
    work = json.load(sys.stdin)
    folder = Path(work["folder"])
    for fields in work["kernels"]:
        kernel = _from_json(fields)
        error = ""
        try:
            cubin = compile_one(kernel)
        except Exception as failure:
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())[-300:]}"
        else:
            facts = json.dumps({"kernel": fields, "shared": cubin.shared, "scratch": cubin.scratch})
            # The facts last: a variant counts as compiled when they are there.
            for suffix, content in ((".cubin", cubin.image), (".json", facts.encode())):
                fresh = folder / f"{kernel}{suffix}.{os.getpid()}"
                fresh.write_bytes(content)
                fresh.replace(folder / f"{kernel}{suffix}")
        print(json.dumps({"kernel": str(kernel), "error": error}), flush=True)


if __name__ == "__main__":
    _work()
