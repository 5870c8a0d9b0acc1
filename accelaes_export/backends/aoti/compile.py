"""From a traced focus step to AOTInductor packages: code in .pt2 files, weights in one file beside them."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from accelaes_export.backends.aoti.targets import CPU, PORTABLE, cpu_instructions, freezes, is_gpu
from accelaes_export.backends.aoti.toolchain import CudaToolchain, folders_without_spaces, what_failed
from accelaes_export.backends.base import CompileRequest, Progress
from accelaes_export.backends.graphs import GraphRequest
from accelaes_export.backends.weights_file import WEIGHTS_FILE, Element, Weight, write_weights_file
from accelaes_export.errors import BuildError, InputError, MissingComponentError

PACKAGE = "focus_step.pt2"
_ELEMENTS: dict[torch.dtype, Element] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}


def package_name(n: int | None) -> str:
    """The file of the package for every bucket, or for bucket n alone."""
    return PACKAGE if n is None else f"focus_step.n{n}.pt2"


def compile_packages(request: CompileRequest, target: str, progress: Progress) -> tuple[tuple[str, ...], str]:
    """Write the request's packages and their weights.

    Returns:
        The files, and for a CPU what `cpu_instructions` says of the code ("" for a GPU).

    Raises:
        BuildError: the compiler failed.
    """
    assert request.program is not None, "the builder hands a program to backends that read one"
    contract, options = request.contract, request.options
    freezing = freezes(options, target)
    device = torch.device("cuda", torch.cuda.current_device()) if is_gpu(target) else torch.device("cpu")
    buckets: tuple[int | None, ...] = contract.buckets if options.per_bucket else (None,)
    settings = _settings(target, freezing=freezing, autotune=options.autotune)
    files: list[str] = []
    constants: dict[str, Weight] = {}
    for k, n in enumerate(buckets):
        which = "" if n is None else f" n = {n}"
        progress(f"trace{which}", k / len(buckets))
        program = request.program.trace(device, n, filled=freezing, operator=request.attention == "plugin")
        progress(f"compile{which}", (k + 0.2) / len(buckets))
        path = request.destination / package_name(n)
        _compile(program, path, settings, CudaToolchain.found().in_use() if is_gpu(target) else nullcontext())
        files.append(path.name)
        if not freezing:
            traced = {**program.state_dict, **program.constants}
            constants |= {name: _described(name, traced[name]) for name in _constants(path, device)}
    if constants:
        progress("write weights", None)
        _write_constants(request.destination / WEIGHTS_FILE, constants.values(), request.program.weight)
        files.append(WEIGHTS_FILE)
    progress("compile", 1.0)
    return tuple(files), "" if is_gpu(target) else _instructions(settings)


def compile_program(request: GraphRequest, target: str) -> tuple[str, ...]:
    """Write a graph, traced on the CPU, as one package, with its weights beside it where it has large ones.

    Raises:
        BuildError: the compiler failed.
    """
    program, path = request.program, request.destination / f"{request.name}.pt2"
    assert program is not None, "the builder hands a program to backends that read one"
    if is_gpu(target):
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, f"cuda:{torch.cuda.current_device()}")
    toolchain = CudaToolchain.found().in_use() if is_gpu(target) else nullcontext()
    inside = request.weight is None
    settings = _settings(target, freezing=False, autotune=False) | {"aot_inductor.package_constants_in_so": inside}
    _compile(program, path, settings, toolchain)
    if request.weight is None:
        return (path.name,)
    device = torch.device("cuda", torch.cuda.current_device()) if is_gpu(target) else torch.device("cpu")
    traced = {**program.state_dict, **program.constants}
    constants = [_described(name, traced[name]) for name in _constants(path, device)]
    weights = path.with_suffix(".safetensors")
    _write_constants(weights, constants, request.weight)
    return (path.name, weights.name)


def _described(name: str, traced: torch.Tensor) -> Weight:
    """A weight by the tensor it was traced with, which has its dtype and shape but may hold anything."""
    return Weight(name, _ELEMENTS[traced.dtype], tuple(traced.shape), traced.numel() * traced.element_size())


def _write_constants(path: Path, weights: Iterable[Weight], read: Callable[[str], torch.Tensor | None]) -> None:
    """One safetensors file of the weights, each read once, when it is written."""

    def pieces(weight: Weight) -> Iterator[memoryview]:
        found = read(weight.name)
        assert found is not None, weight.name
        value = found.detach().cpu().contiguous()
        yield memoryview(value.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]

    write_weights_file(path, weights, pieces)


def _compile(
    program: torch.export.ExportedProgram, path: Path, settings: dict[str, Any], toolchain: AbstractContextManager[None]
) -> None:
    from torch._inductor import aoti_compile_and_package

    try:
        with torch.no_grad(), warnings.catch_warnings(), folders_without_spaces(), toolchain:
            warnings.simplefilter("ignore")
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    except InputError:
        raise
    except Exception as error:  # Inductor's and the C++ compiler's errors share no base class
        raise BuildError(f"AOTInductor could not compile {path.name}: {_why(error)}") from error


def _why(error: BaseException) -> str:
    """The C++ compiler's own words where it was the one that failed, else the first line of the error's."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(getattr(inner, "output", None), str):
        inner = inner.__cause__ or inner.__context__
    if inner is not None:
        return what_failed(inner.output)  # type: ignore[attr-defined]
    _, marked, output = str(error).partition("Output:\n")  # of a compilation in another process
    return what_failed(output if marked else str(error) or type(error).__name__, lines=8 if marked else 1)


def _constants(path: Path, device: torch.device) -> list[str]:
    """The weights a package wants, by their names in the program. Opening it also shows that it can be opened."""
    from torch._inductor import aoti_load_package

    index = device.index if device.type == "cuda" else -1
    return list(aoti_load_package(str(path), device_index=index).get_constant_fqns())


def _settings(target: str, *, freezing: bool, autotune: bool) -> dict[str, Any]:
    """Inductor's configuration of a build."""
    from torch._inductor import config

    settings: dict[str, Any] = {
        "freezing": freezing,
        "max_autotune": autotune,
        # Without freezing the weights stay outside, where all packages and every process may share them.
        "aot_inductor.package_constants_in_so": freezing,
        "cpp.dynamic_threads": True,  # as many as the process has when it runs, not when it was compiled
    }
    if not is_gpu(target) and platform.machine() in ("x86_64", "AMD64"):
        wide = target == CPU and torch.backends.cpu.get_cpu_capability() == "AVX512"
        if hasattr(config.cpp, "march"):
            # By level, not "native": a CPU of the next generation lacks some odd set of this one's.
            settings["cpp.march"] = "x86-64-v4" if wide else PORTABLE
        elif target == PORTABLE:
            raise MissingComponentError(
                f"torch {torch.__version__} compiles for this machine's CPU alone; install torch 2.13 or later, or "
                "take the target cpu."
            )
        if target == PORTABLE:
            settings["cpp.simdlen"] = 256
    return settings


def _instructions(settings: dict[str, Any]) -> str:
    """What the code that was compiled with these settings needs of a CPU."""
    from torch._inductor import config
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    with config.patch(settings):
        return cpu_instructions(pick_vec_isa().build_arch_flags())
