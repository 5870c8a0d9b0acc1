"""AOTInductor: torch's ahead-of-time compiler. Packages run on the CPU and on any CUDA GPU, in Python and C++.

A package holds machine code that runs in the process that opens it: open the bundles of people you trust alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from accelaes_export.backends.aoti.targets import INSTRUCTIONS, NATIVE, TARGETS, freezes, is_gpu, resolve
from accelaes_export.backends.base import (
    Availability,
    CompiledEngine,
    CompileRequest,
    Progress,
    Weights,
)
from accelaes_export.backends.graphs import GraphRequest
from accelaes_export.contract.compile_options import CompileOptions
from accelaes_export.contract.tensors import GraphContract, TensorSpec
from accelaes_export.errors import InputError, MissingComponentError
from accelaes_export.plugins.sparse_query_attention import NAME, VERSION

if TYPE_CHECKING:
    import torch

    from accelaes_export.backends.aoti.session import AotiGraph, AotiSession


class AotiBackend:
    """Compiles the traced focus step with the C++ compiler (CPU) or Triton (GPU) of this machine."""

    name = "aoti"
    reads: Literal["onnx", "program"] = "program"
    runs_code = True
    takes_plugin = True
    weights_beside = False
    layerwise = True
    version_bound: str | None = None  # a session says what it needs of torch
    packages: tuple[str, ...] = ("torch", "triton")
    target_words = TARGETS
    dtypes: tuple[str, ...] = ("fp32", "fp16", "bf16")
    default_targets: tuple[str, ...] = (NATIVE,)
    dynamic_text = True

    def availability(self) -> Availability:
        """Packages run wherever torch does; building one takes a C++ compiler, and for a GPU CUDA's headers."""
        import torch

        versions = {"torch": torch.__version__}
        reason, remedy = _lacking(NATIVE)
        return Availability(not reason, True, versions, reason, remedy)

    def check(self, dtype: str, targets: tuple[str, ...]) -> None:
        """Raise InputError for a dtype or target it can't do, MissingComponentError where it can't build here."""
        if dtype not in self.dtypes:
            raise InputError(f"aoti has no dtype {dtype!r}; choose one of {', '.join(self.dtypes)}.")
        target = resolve(targets)
        if dtype == "bf16" and is_gpu(target) and int(target[2:]) < 80:
            raise InputError(f"{target} has no bf16, which begins with sm80; choose fp16.")
        reason, remedy = _lacking(target)
        if reason:
            raise MissingComponentError(f"aoti can't build here for {target}: {reason}; {remedy}.")

    def for_gpu(self, targets: tuple[str, ...]) -> bool:
        return is_gpu(resolve(targets))

    def architectures(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        return (resolve(targets),)

    def weight_copies(self, weights: Weights, options: CompileOptions, targets: tuple[str, ...]) -> float:
        """Freezing holds them about four times (docs/benchmarks.md); otherwise they are never in memory together."""
        return 4.2 if freezes(options, resolve(targets)) else 0.0

    def compile(self, request: CompileRequest, progress: Progress) -> CompiledEngine:
        import torch

        from accelaes_export.backends.aoti.compile import compile_packages

        self.check(request.contract.dtype, request.targets)
        target = resolve(request.targets)
        files, instructions = compile_packages(request, target, progress)
        versions = {"torch": torch.__version__} | ({INSTRUCTIONS: instructions} if instructions else {})
        versions |= {NAME: VERSION} if request.attention == "plugin" else {}
        return CompiledEngine(files, versions, (target,))

    def open(
        self,
        folder: Path,
        contract: GraphContract,
        files: tuple[str, ...],
        *,
        device: str | None = None,
        versions: Mapping[str, str] | None = None,
        targets: tuple[str, ...] = (),
        cuda_graphs: bool = True,
    ) -> AotiSession:
        """See `Backend.open`; a package runs on the kind of device it was compiled for, which is the default."""
        from accelaes_export.backends.aoti.session import open_session

        return open_session(
            folder,
            contract,
            files,
            device=device,
            versions=dict(versions or {}),
            targets=targets,
            cuda_graphs=cuda_graphs,
        )

    def compile_graph(self, request: GraphRequest) -> tuple[str, ...]:
        from accelaes_export.backends.aoti.compile import compile_program

        return compile_program(request, resolve(request.targets))

    def open_graph(
        self,
        files: tuple[Path, ...],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: torch.device,
    ) -> AotiGraph:
        from accelaes_export.backends.aoti.session import open_graph

        return open_graph(files, inputs, outputs, device)


def _lacking(target: str) -> tuple[str, str]:
    """Why packages for `target` can't be compiled here, and what mends it; two empty strings where they can."""
    import torch

    from accelaes_export.backends.aoti.toolchain import CudaToolchain, compiler

    if shutil.which(compiler()) is None:
        return f"there is no C++ compiler {compiler()}", "install g++, or name another in CXX"
    gpu = torch.cuda.is_available() if target == NATIVE else is_gpu(target)
    reason = CudaToolchain.found().why_not() if gpu else ""
    return reason, "install CUDA's toolkit or name its folder in CUDA_HOME, or take the target cpu" if reason else ""
