"""What an AOTInductor package is compiled for: this machine's CPU or GPU, or any CPU of a level."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from accelaes_export.contract.compile_options import CompileOptions
from accelaes_export.errors import BundleError, InputError, MissingComponentError, OtherDeviceError

NATIVE = "native"
"""This machine: its GPU where torch can use one, else its CPU."""
CPU = "cpu"
"""This machine's CPU with all it can do."""
PORTABLE = "x86-64-v3"
"""Any x86-64 CPU with AVX2, from 2013 on."""
INSTRUCTIONS = "cpu"
"""The entry among a CPU package's versions that says what its code needs, as `cpu_instructions` writes it."""
TARGETS = (NATIVE, CPU, PORTABLE, "cuda")

_CUDA_TORCH = "install a CUDA build of torch (see https://pytorch.org/get-started)"


def resolve(targets: tuple[str, ...]) -> str:
    """The one target a package is compiled for: "cpu", "x86-64-v3", or this machine's GPU as "sm90".

    Raises:
        InputError: none or several, one that doesn't exist, or a GPU this machine doesn't have.
        MissingComponentError: a GPU was asked for and torch can't use one.
    """
    if len(targets) != 1:
        raise InputError(
            f"aoti compiles a package for one target, not for {', '.join(targets) or 'none'}; build one bundle each."
        )
    target = targets[0]
    capability = re.fullmatch(r"sm(\d{2,3})", target)
    if target not in TARGETS and not capability:
        raise InputError(f"aoti compiles for {', '.join(TARGETS)} or a GPU such as sm90, not for {target}.")
    if target == PORTABLE and platform.machine() not in ("x86_64", "AMD64"):
        raise InputError(f"{PORTABLE} is no target on this {platform.machine()} machine; say cpu.")
    if target in (CPU, PORTABLE):
        return target
    import torch

    if not torch.cuda.is_available():
        if target == NATIVE:
            return CPU
        raise MissingComponentError(
            f"aoti compiles for {target} on a machine with that GPU, and torch {torch.__version__} finds none here; "
            f"{_CUDA_TORCH}, or take the target cpu."
        )
    own = gpu_capability(torch.cuda.current_device())
    if capability and target != own:
        raise InputError(f"aoti tunes on the GPU it compiles for, and this machine's is {own}, not {target}.")
    return own


def gpu_capability(index: int) -> str:
    """The compute capability of CUDA device `index` as a target's name."""
    import torch

    major, minor = torch.cuda.get_device_capability(index)
    return f"sm{major}{minor}"


def is_gpu(target: str) -> bool:
    """Whether a resolved target is a GPU."""
    return target.startswith("sm")


def freezes(options: CompileOptions, target: str) -> bool:
    """Whether weights go into the package. On CPUs oneDNN's own layouts are worth it; GPUs have none to gain from."""
    return not (is_gpu(target) or options.per_bucket) if options.freezing is None else options.freezing


def check_gpu(target: str, own: str) -> None:
    """OtherDeviceError unless machine code for `target` runs on `own`: same major capability, no older minor."""
    if own[2:-1] != target[2:-1] or int(own[-1]) < int(target[-1]):
        raise OtherDeviceError(
            f"This package was compiled for {target} and this GPU is {own}; build the bundle again on this machine."
        )


def cpu_instructions(flags: str) -> str:
    """The machine and the instruction sets of a compiler's flags: "x86_64 avx512bw avx512f fma"."""
    sets = sorted(_plain(flag) for flag in re.findall(r"-m(?!arch|sve)([\w.-]+)", flags))
    return " ".join([platform.machine(), *dict.fromkeys(sets)])


def check_cpu(needed: str) -> None:
    """BundleError where this CPU lacks something of `needed`, as `cpu_instructions` wrote it.

    The compiled code would otherwise end the process with an illegal instruction.
    """
    machine, *sets = needed.split()
    if machine != platform.machine():
        raise BundleError(
            f"This package was compiled for {machine} and this machine is {platform.machine()}; build it again here."
        )
    here = _own_instructions()
    missing = [name for name in sets if here and name not in here]
    if missing:
        raise BundleError(
            f"This package uses {', '.join(missing)}, which this CPU doesn't have; build the bundle again here, or "
            f"with --target {PORTABLE}."
        )


def _own_instructions() -> frozenset[str]:
    """What /proc/cpuinfo lists; empty where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(_plain(flag) for flag in flags.split())


def _plain(name: str) -> str:
    """Compilers and kernels spell the same set avx512bf16, avx512-bf16 and avx512_bf16."""
    return name.replace("_", "").replace("-", "").lower()
