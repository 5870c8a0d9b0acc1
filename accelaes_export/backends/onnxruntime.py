"""ONNX Runtime: the engine is the ONNX model itself. Runs on every CPU, and on CUDA with onnxruntime-gpu."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from accelaes_export.backends.base import (
    Availability,
    CompiledEngine,
    CompileOptions,
    CompileRequest,
    KernelTime,
    Progress,
    Weights,
)
from accelaes_export.backends.onnx_files import copy_model
from accelaes_export.backends.tensor_table import TensorTable
from accelaes_export.contract.tensors import GraphContract
from accelaes_export.errors import AccelAesError, BundleError, InputError, MissingComponentError
from accelaes_export.memory import lacks_memory

if TYPE_CHECKING:
    import torch

    from accelaes_export.backends.workspace import Workspace, Workspaces

THREADS_VARIABLE = "ACCELAES_THREADS"
_ELEMENT_TYPES = {"fp32": 1, "fp16": 10, "bf16": 16, "int64": 7}  # onnx.TensorProto.DataType
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
        unknown = [target for target in targets if target not in ("cpu", "cuda")]
        if unknown or not targets:
            raise InputError(f"onnxruntime runs on the targets cpu and cuda, not {', '.join(unknown) or 'nothing'}.")
        if dtype == "bf16" and "cpu" in targets:
            raise InputError("onnxruntime has no bf16 MatMul on the CPU; choose fp32 or fp16, or target cuda alone.")
        here = self.availability()
        if not here.can_build:
            raise MissingComponentError(f"onnxruntime can't build here: {here.reason}; mend it with: {here.remedy}.")

    def for_gpu(self, targets: tuple[str, ...]) -> bool:
        return "cpu" not in targets

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
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingComponentError(
                f"This bundle needs onnxruntime, which can't be imported: {_CPU_BUILD}."
            ) from error
        models = [name for name in files if name.endswith(".onnx")]
        if len(models) != 1 or not (folder / models[0]).is_file():
            raise BundleError(
                f"{folder} should hold one ONNX model and its manifest names {models or 'none'}; build it again."
            )
        chosen = _device(onnxruntime, device)
        if contract.dtype == "bf16" and chosen.type == "cpu":
            raise MissingComponentError(f"This bundle is bf16, which ONNX Runtime runs on CUDA alone: {_CUDA_BUILD}.")
        providers: list[Any] = ["CPUExecutionProvider"]
        if chosen.type == "cuda":
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": chosen.index}))

        def opened(profile: str | None = None) -> Any:
            return onnxruntime.InferenceSession(str(folder / models[0]), self._options(onnxruntime, profile), providers)

        try:
            session = opened()
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if lacks_memory(error):
                raise MemoryError(_first_line(error)) from error
            built = (
                f" (the bundle was built with {versions['onnxruntime']})"
                if versions and "onnxruntime" in versions
                else ""
            )
            raise BundleError(
                f"onnxruntime {onnxruntime.__version__} can't open {models[0]}{built}: {_first_line(error)}. "
                "Build the bundle again."
            ) from error
        return OnnxRuntimeSession(session, contract, chosen, opened)

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


class OnnxRuntimeSession:
    """A focus step in ONNX Runtime, reading and writing the caller's torch tensors in place.

    Args:
        session: the InferenceSession.
        contract, device: its tensor table, and where its tensors are.
        opened: opens the model once more, as a session that writes a profile to files with a given prefix.
    """

    def __init__(
        self, session: Any, contract: GraphContract, device: torch.device, opened: Callable[[str], Any]
    ) -> None:
        self.contract = contract
        self.device = device
        self._session = session
        self._opened = opened
        self._table = TensorTable(contract, device)
        self.workspaces = _workspaces(device)
        self._elements = {spec.name: _ELEMENT_TYPES[spec.dtype] for spec in (*contract.inputs, *contract.outputs)}
        _check_names("inputs", [s.name for s in contract.inputs], [a.name for a in session.get_inputs()])
        _check_names("outputs", [s.name for s in contract.outputs], [a.name for a in session.get_outputs()])

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
        workspace: Workspace | None = None,
    ) -> None:
        """One focus step; see `Session.run`. On CUDA the outputs are complete when it returns."""
        self._table.check(inputs, outputs)
        # An IOBinding belongs to one call, the InferenceSession to all threads.
        binding = self._session.io_binding()
        kind, index = self.device.type, self.device.index or 0
        for name, tensor in inputs.items():
            binding.bind_input(name, kind, index, self._elements[name], list(tensor.shape), tensor.data_ptr())
        for name, tensor in outputs.items():
            if tensor.numel():  # an empty one has no address, and nothing to fetch
                binding.bind_output(name, kind, index, self._elements[name], list(tensor.shape), tensor.data_ptr())
        if kind == "cuda":
            self._wait_for_torch()
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # as above
            if lacks_memory(error):
                raise MemoryError(_first_line(error)) from error
            raise AccelAesError(f"ONNX Runtime failed in a focus step: {_first_line(error)}.") from error

    def kernel_times(
        self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor], calls: int
    ) -> tuple[KernelTime, ...]:
        """Time by operator over `calls` focus steps, after one that isn't counted. Opens the model a second time."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._opened(str(Path(folder) / "profile"))
            watched = OnnxRuntimeSession(session, self.contract, self.device, self._opened)
            for _ in range(1 + calls):
                watched.run(inputs, outputs)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        first = next(event for event in events if event["name"] == "model_run")
        counted: dict[str, KernelTime] = {}
        for event in events:
            if event["cat"] == "Node" and "op_name" in event["args"] and event["ts"] >= first["ts"] + first["dur"]:
                name = event["args"]["op_name"]
                so_far = counted.get(name, KernelTime(name, 0, 0.0))
                counted[name] = KernelTime(name, so_far.calls + 1, so_far.seconds + 1e-6 * event["dur"])
        return tuple(counted.values())

    def _wait_for_torch(self) -> None:
        """The provider runs on a stream of its own, so what torch still computes must be done first."""
        import torch

        torch.cuda.current_stream(self.device).synchronize()


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


def _workspaces(device: torch.device) -> Workspaces:
    from accelaes_export.backends.cuda import TorchCuda
    from accelaes_export.backends.workspace import Workspaces

    return Workspaces(device, TorchCuda.on(str(device)) if device.type == "cuda" else None)


def _threads_from_environment() -> int:
    value = os.environ.get(THREADS_VARIABLE, "")
    if value and not value.isdecimal():
        raise InputError(f"{THREADS_VARIABLE} is {value!r}; give a number of threads, or unset it for one per core.")
    return int(value or 0)


def _check_names(kind: str, wanted: list[str], found: list[str]) -> None:
    if sorted(wanted) != sorted(found):
        different = ", ".join(sorted(set(wanted) ^ set(found))[:6])
        raise BundleError(
            f"The engine's {kind} differ from the manifest's contract in {different}; build the bundle again."
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
