"""ONNX Runtime: the engine is the ONNX model itself. Runs on every CPU, and on CUDA with onnxruntime-gpu."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accelaes_export.backends.base import (
    Availability,
    CompiledEngine,
    CompileRequest,
    Progress,
    Weights,
)
from accelaes_export.backends.graphs import GraphRequest
from accelaes_export.backends.onnx_files import copy_model
from accelaes_export.backends.onnxruntime.session import OnnxRuntimeGraph, OnnxRuntimeSession
from accelaes_export.contract.compile_options import CompileOptions
from accelaes_export.contract.tensors import GraphContract, TensorSpec
from accelaes_export.errors import BundleError, InputError, MissingComponentError, first_line
from accelaes_export.memory import lacks_memory

if TYPE_CHECKING:
    import torch

THREADS_VARIABLE = "ACCELAES_THREADS"
_CPU_BUILD = "pip install onnxruntime"
_CUDA_BUILD = "pip install onnxruntime-gpu (in place of onnxruntime) and a CUDA build of torch"


class OnnxRuntimeBackend:
    """Compiles by checking and copying the ONNX model; a session takes any text length and the contract's buckets.

    Args:
        threads: intra-op threads of CPU sessions; None reads $ACCELAES_THREADS, and where that is unset
            ONNX Runtime takes one per physical core.
        spinning: let idle threads burn their core waiting for the next operator. Off by default: between
            two focus steps the cores belong to the denoiser and to the other requests of a service.
    """

    name = "onnxruntime"
    reads: Literal["onnx", "program"] = "onnx"
    runs_code = False
    takes_plugin = False
    weights_beside = False
    layerwise = True
    version_bound: str | None = None
    packages: tuple[str, ...] = ("onnxruntime", "onnxruntime-gpu")
    target_words: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[str, ...] = ("fp32", "fp16", "bf16")
    default_targets: tuple[str, ...] = ("cpu",)
    dynamic_text = True

    def __init__(self, threads: int | None = None, *, spinning: bool = False) -> None:
        self._threads = threads
        self._spinning = spinning

    def availability(self) -> Availability:
        try:
            import onnxruntime
        except ImportError as error:
            return Availability(False, False, reason=f"onnxruntime can't be imported ({error})", remedy=_CPU_BUILD)
        versions = {"onnxruntime": onnxruntime.__version__}
        try:
            import onnx
        except ImportError as error:
            return Availability(False, True, versions, f"onnx can't be imported ({error})", "pip install onnx")
        return Availability(True, True, versions | {"onnx": onnx.__version__})

    def check(self, dtype: str, targets: tuple[str, ...]) -> None:
        """Raise InputError for a dtype or target it can't do, MissingComponentError where it can't build here."""
        if dtype not in self.dtypes:
            raise InputError(f"onnxruntime has no dtype {dtype!r}; choose one of {', '.join(self.dtypes)}.")
        unknown = [target for target in targets if target not in self.target_words]
        if unknown or not targets:
            raise InputError(f"onnxruntime runs on the targets cpu and cuda, not {', '.join(unknown) or 'nothing'}.")
        if dtype == "bf16" and "cpu" in targets:
            raise InputError("onnxruntime has no bf16 MatMul on the CPU; choose fp32 or fp16, or target cuda alone.")
        here = self.availability()
        if not here.can_build:
            raise MissingComponentError(f"onnxruntime can't build here: {here.reason}; mend it with: {here.remedy}.")

    def for_gpu(self, targets: tuple[str, ...]) -> bool:
        return "cpu" not in targets

    def architectures(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        return targets

    def weight_copies(self, weights: Weights, options: CompileOptions, targets: tuple[str, ...]) -> float:
        return 0.0  # the file is copied

    def compile(self, request: CompileRequest, progress: Progress) -> CompiledEngine:
        self.check(request.contract.dtype, request.targets)
        progress("check and copy ONNX", None)
        files = copy_model(request.onnx_file, request.destination)
        progress("check and copy ONNX", 1.0)
        return CompiledEngine(files, self.availability().versions, request.targets)

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
    ) -> OnnxRuntimeSession:
        """See `Backend.open`; without a `device`, CUDA where ONNX Runtime and torch both have it, else the CPU.

        ONNX Runtime's own CUDA graphs aren't used: `cuda_graphs` changes nothing.
        """
        onnxruntime = _imported()
        model = _model(folder, files)
        chosen = _device(onnxruntime, device)
        if contract.dtype == "bf16" and chosen.type == "cpu":
            raise MissingComponentError(f"This bundle is bf16, which ONNX Runtime runs on CUDA alone: {_CUDA_BUILD}.")
        session = self._opened(onnxruntime, model, chosen, versions or {})
        return OnnxRuntimeSession(
            session, contract, chosen, lambda profile: self._inference(onnxruntime, model, chosen, profile)
        )

    def compile_graph(self, request: GraphRequest) -> tuple[str, ...]:
        return copy_model(request.onnx_file, request.destination)

    def open_graph(
        self,
        files: tuple[Path, ...],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: torch.device,
    ) -> OnnxRuntimeGraph:
        session = self._opened(_imported(), files[0], device, {})
        return OnnxRuntimeGraph(session, inputs, outputs, device)

    def _opened(self, onnxruntime: Any, model: Path, device: torch.device, versions: Mapping[str, str]) -> Any:
        """The InferenceSession of a model; BundleError where it can't be opened, MemoryError for want of room."""
        try:
            return self._inference(onnxruntime, model, device)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if lacks_memory(error):
                raise MemoryError(first_line(error)) from error
            built = f" (the bundle was built with {versions['onnxruntime']})" if "onnxruntime" in versions else ""
            raise BundleError(
                f"onnxruntime {onnxruntime.__version__} can't open {model.name}{built}: {first_line(error)}. "
                "Build the bundle again."
            ) from error

    def _inference(self, onnxruntime: Any, model: Path, device: torch.device, profile: str | None = None) -> Any:
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.type == "cuda":
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index}))
        return onnxruntime.InferenceSession(str(model), self._options(onnxruntime, profile), providers)

    def _options(self, onnxruntime: Any, profile: str | None) -> Any:
        """Of a session; with `profile`, of one that writes where its time goes to files that begin like this."""
        options = onnxruntime.SessionOptions()
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # warnings speak of constant folding, never of the caller's input
        options.intra_op_num_threads = self._threads if self._threads is not None else _threads_from_environment()
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self._spinning else "0")
        return options


def _imported() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingComponentError(f"This bundle needs onnxruntime, which can't be imported: {_CPU_BUILD}.") from error
    return onnxruntime


def _model(folder: Path, files: tuple[str, ...]) -> Path:
    """The ONNX file among them; BundleError where it isn't there."""
    models = [name for name in files if name.endswith(".onnx")]
    if len(models) != 1 or not (folder / models[0]).is_file():
        raise BundleError(
            f"{folder} should hold one ONNX model and its manifest names {models or 'none'}; build it again."
        )
    return folder / models[0]


def _device(onnxruntime: Any, asked: str | None) -> torch.device:
    import torch

    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers() and torch.cuda.is_available()
    try:
        device = torch.device(asked or ("cuda" if has_cuda else "cpu"))
    except RuntimeError as error:
        raise InputError(f"There is no device {asked!r}; say cpu, cuda or cuda:1.") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"onnxruntime sessions run on cpu or cuda, not on {device}.")
    if device.type == "cpu":
        return torch.device("cpu")
    if not has_cuda:
        raise MissingComponentError(
            f"ONNX Runtime or torch has no CUDA on this machine; it takes {_CUDA_BUILD}, or device cpu."
        )
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _threads_from_environment() -> int:
    value = os.environ.get(THREADS_VARIABLE, "")
    if value and not value.isdecimal():
        raise InputError(f"{THREADS_VARIABLE} is {value!r}; give a number of threads, or unset it for one per core.")
    return int(value or 0)
