"""TensorRT for RTX and TensorRT proper: one implementation, two flavours. Imports neither until it is used."""

from __future__ import annotations

import threading
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
from accelaes_export.backends.tensorrt.attention_plugin import AttentionPlugin
from accelaes_export.backends.tensorrt.driver import DriverReport, ask_driver
from accelaes_export.backends.tensorrt.flavour import NATIVE, RTX, STANDARD, Flavour, capability
from accelaes_export.backends.tensorrt.library import Library
from accelaes_export.backends.tensorrt.messages import Messages, tensorrt_logger
from accelaes_export.contract.compile_options import CompileOptions
from accelaes_export.contract.tensors import GraphContract, TensorSpec
from accelaes_export.errors import InputError, MissingComponentError
from accelaes_export.plugins.sparse_query_attention import NAME, VERSION

if TYPE_CHECKING:
    import torch

    from accelaes_export.backends.tensorrt.graphs import TensorRTGraph
    from accelaes_export.backends.tensorrt.session import TensorRTSession

_DRIVER = "install NVIDIA's driver on a machine with a supported GPU"
_CUDA_TORCH = "install a CUDA build of torch (see https://pytorch.org/get-started)"


class TensorRTBackend:
    """Compiles one engine with a profile per bucket, and opens it as a session over CUDA tensors.

    Args:
        flavour: which of the two libraries.
        driver: how this machine's GPUs are found.
    """

    reads: Literal["onnx", "program"] = "onnx"
    runs_code = False
    takes_plugin = True
    weights_beside = True
    layerwise = False
    dtypes: tuple[str, ...] = ("fp16", "bf16", "fp32")
    dynamic_text = False

    def __init__(self, flavour: Flavour, *, driver: Any = ask_driver) -> None:
        self.name = flavour.name
        self.default_targets: tuple[str, ...] = flavour.default_targets
        self.target_words: tuple[str, ...] = (NATIVE, *flavour.targets)
        self.version_bound: str | None = flavour.package
        self.packages: tuple[str, ...] = (flavour.package,)
        self.flavour = flavour
        self._driver = driver
        self._loaded: Library | None = None
        self._plugin = AttentionPlugin()
        self._lock = threading.Lock()

    def availability(self) -> Availability:
        """Whether it builds and runs here. A flavour that builds without a GPU may still lack one to run on."""
        try:
            trt = self.flavour.load()
        except MissingComponentError as error:
            reason = f"{self.flavour.module} can't be imported ({error.__cause__})"
            return Availability(False, False, reason=reason, remedy=self.flavour.install)
        driver: DriverReport = self._driver()
        versions = {self.flavour.module: trt.__version__}
        if driver.cuda_version:
            versions["cuda driver"] = driver.cuda_version
        can_build = self.flavour.builds_without_gpu or bool(driver.gpus)
        if not driver.gpus:
            return Availability(can_build, False, versions, driver.reason, _DRIVER)
        if not any(self.flavour.supports(gpu.compute_capability) for gpu in driver.gpus):
            found = ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in driver.gpus)
            return Availability(
                can_build, False, versions, f"{self.name} doesn't run on {found}", "use another backend"
            )
        import torch

        if not torch.cuda.is_available():
            return Availability(can_build, False, versions, "this torch can't use the GPU", _CUDA_TORCH)
        return Availability(can_build, True, versions)

    def check(self, dtype: str, targets: tuple[str, ...]) -> None:
        """Raise InputError for a dtype or target it can't do, MissingComponentError where it can't build here."""
        if dtype not in self.dtypes:
            raise InputError(f"{self.name} has no dtype {dtype!r}; choose one of {', '.join(self.dtypes)}.")
        allowed = (*self.flavour.targets, NATIVE)
        unknown = [target for target in targets if target not in allowed]
        if unknown or not targets:
            raise InputError(f"{self.name} builds for {', '.join(allowed)}, not for {', '.join(unknown) or 'nothing'}.")
        if len(set(targets)) < len(targets):
            raise InputError(f"The targets {', '.join(targets)} name one twice; name each once.")
        if len(targets) > 1 and not self.flavour.builds_without_gpu:
            raise InputError(
                f"{self.name} builds an engine for one target, not for {', '.join(targets)}; build one bundle each."
            )
        here = self.availability()
        if not here.can_build:
            raise MissingComponentError(f"{self.name} can't build here: {here.reason}; {here.remedy}.")
        resolved = self._resolve(targets)
        old = [target for target in resolved if capability(target) < 80]
        if dtype == "bf16" and old:
            raise InputError(
                f"{', '.join(old)} has no bf16, which begins with sm80; choose fp16 or leave that target out."
            )

    def for_gpu(self, targets: tuple[str, ...]) -> bool:
        return True

    def architectures(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        return targets

    def weight_copies(self, weights: Weights, options: CompileOptions, targets: tuple[str, ...]) -> float:
        """TensorRT's builder copies weights about twice (docs/benchmarks.md), unless they are inputs."""
        return 0.0 if weights == "inputs" else 2.1

    def compile(self, request: CompileRequest, progress: Progress) -> CompiledEngine:
        from accelaes_export.backends.tensorrt.compile import ENGINE_FILE, EngineBuild
        from accelaes_export.backends.weights_file import WEIGHTS_FILE

        self.check(request.contract.dtype, request.targets)
        trt = self.flavour.load()
        targets = self._resolve(request.targets)
        plugin = {NAME: VERSION} if request.attention == "plugin" else {}
        if plugin:
            self._plugin.load(trt)
        notes = EngineBuild(self._library(), request, targets).run(progress)
        files = (ENGINE_FILE, WEIGHTS_FILE) if request.weights == "inputs" else (ENGINE_FILE,)
        return CompiledEngine(files, {self.flavour.module: trt.__version__, **plugin}, targets, notes)

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
    ) -> TensorRTSession:
        """See `Backend.open`; without a `device`, torch's current CUDA device."""
        from accelaes_export.backends.cuda import TorchCuda
        from accelaes_export.backends.tensorrt.opening import EngineSource, open_session

        trt = self.flavour.load()
        driver: DriverReport = self._driver()
        if not driver.gpus:
            raise MissingComponentError(f"This engine runs on an NVIDIA GPU, and here {driver.reason}; {_DRIVER}.")
        source = EngineSource(folder, files, contract, dict(versions or {}), targets)
        cuda = TorchCuda.on(device)
        if NAME in source.versions:
            self._plugin.require(trt, contract, cuda.compute_capability)
        return open_session(self._library(), source, cuda, cuda_graphs=cuda_graphs)

    def compile_graph(self, request: GraphRequest) -> tuple[str, ...]:
        from accelaes_export.backends.tensorrt.graphs import build_graph

        return (build_graph(self._library(), request, self._resolve(request.targets)),)

    def open_graph(
        self,
        files: tuple[Path, ...],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: torch.device,
    ) -> TensorRTGraph:
        from accelaes_export.backends.cuda import TorchCuda
        from accelaes_export.backends.tensorrt.graphs import open_graph

        return open_graph(self._library(), files[0], inputs, outputs, TorchCuda.on(str(device)))

    def _library(self) -> Library:
        """The library with its logger: TensorRT takes one a process."""
        with self._lock:
            if self._loaded is None:
                trt, messages = self.flavour.load(), Messages()
                self._loaded = Library(trt, self.flavour, tensorrt_logger(trt, messages), messages)
            return self._loaded

    def _resolve(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        """`targets` with `NATIVE` replaced by this machine's compute capability."""
        if NATIVE not in targets:
            return targets
        driver: DriverReport = self._driver()
        if not driver.gpus:
            raise MissingComponentError(
                f"The target {NATIVE} is this machine's GPU, and {driver.reason}; name a target or {_DRIVER}."
            )
        own = driver.gpus[0].compute_capability
        if not self.flavour.supports(own):
            raise InputError(
                f"{self.name} doesn't build for this machine's {own}; name one of {', '.join(self.flavour.targets)}."
            )
        return tuple(dict.fromkeys(own if target == NATIVE else target for target in targets))


def rtx() -> TensorRTBackend:
    """TensorRT for RTX, on GPUs people have at home."""
    return TensorRTBackend(RTX)


def standard() -> TensorRTBackend:
    """TensorRT, on all others."""
    return TensorRTBackend(STANDARD)
