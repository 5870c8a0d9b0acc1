"""From an engine file to a session, or a sentence saying why this library or this GPU can't take it."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelaes_export.backends.cuda import Cuda
from accelaes_export.backends.tensorrt.flavour import fits
from accelaes_export.backends.tensorrt.library import Library
from accelaes_export.backends.tensorrt.session import TensorRTSession
from accelaes_export.backends.weights_file import WEIGHTS_FILE, load_weights
from accelaes_export.contract.tensors import GraphContract
from accelaes_export.errors import BundleError, MissingComponentError, OtherDeviceError


@dataclass(frozen=True)
class EngineSource:
    """An engine's file and what its manifest says of it; without `versions` and `targets` those aren't compared."""

    folder: Path
    files: tuple[str, ...]
    contract: GraphContract
    versions: dict[str, str]
    targets: tuple[str, ...]

    @property
    def path(self) -> Path:
        engines = [name for name in self.files if name.endswith(".engine")]
        if len(engines) != 1 or not (self.folder / engines[0]).is_file():
            raise BundleError(
                f"{self.folder} should hold one .engine file and its manifest names {engines or 'none'}; "
                "build it again."
            )
        return self.folder / engines[0]


def open_session(library: Library, source: EngineSource, cuda: Cuda, *, cuda_graphs: bool) -> TensorRTSession:
    """Deserialise the engine on `cuda`.

    Raises BundleError for an engine of another GPU, version or contract, MissingComponentError for a driver that
    is too old.
    """
    path = source.path
    own = cuda.compute_capability
    if source.targets and not any(fits(target, own) for target in source.targets):
        raise OtherDeviceError(
            f"This engine was built for {', '.join(source.targets)} and this GPU is {own}; "
            f"build the bundle again with {own} as target."
        )
    library.messages.clear()
    with cuda.current():
        runtime = library.trt.Runtime(library.logger)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise _refusal(library, runtime, plan, source, own)
    weights = {}
    if WEIGHTS_FILE in source.files:
        weights = load_weights(source.folder / WEIGHTS_FILE, cuda.device)
    _check_engine(engine, source.contract, path, frozenset(weights))
    return TensorRTSession(library, engine, source.contract, cuda, cuda_graphs=cuda_graphs, weights=weights)


def _refusal(
    library: Library, runtime: Any, plan: Any, source: EngineSource, own: str
) -> BundleError | MissingComponentError:
    """Why the engine didn't deserialise: what the library says, and both sides of what differs."""
    said, trt, flavour = library.messages.quote(), library.trt, library.flavour
    here, built = trt.__version__, source.versions.get(flavour.module)
    found = _diagnostics(trt, runtime, plan)
    if "OLD_CUDA_DRIVER" in found or "OLD_CUDA_RUNTIME" in found:
        return MissingComponentError(
            f"{flavour.name} {here} needs a newer NVIDIA driver than this machine's: {said}. Update the driver."
        )
    if "UNSUPPORTED_CC" in found:
        targets = ", ".join(source.targets) or "other GPUs"
        return OtherDeviceError(
            f"This engine was built for {targets} and this GPU is {own}; build the bundle again with {own} as target."
        )
    if "VERSION_MISMATCH" in found or (built and built != here):
        return BundleError(
            f"This engine was built with {flavour.name} {built or 'of another version'} and here is {here}: {said}. "
            f"Install the same version, or build the bundle again."
        )
    return BundleError(f"{flavour.name} {here} can't open {source.path.name} on {own}: {said}. Build the bundle again.")


def _diagnostics(trt: Any, runtime: Any, plan: Any) -> tuple[str, ...]:
    """Names of the flags the library raises against the engine; () where the library has no such question."""
    if not hasattr(runtime, "get_engine_validity"):
        return ()
    _, flags = runtime.get_engine_validity(plan)
    kinds = trt.EngineInvalidityDiagnostics.__members__
    return tuple(name for name, kind in kinds.items() if int(flags) & int(kind))


def _check_engine(engine: Any, contract: GraphContract, path: Path, weights: frozenset[str]) -> None:
    found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    wanted = {spec.name for spec in (*contract.inputs, *contract.outputs)} | weights
    if found != wanted:
        different = ", ".join(sorted(found ^ wanted)[:6])
        raise BundleError(
            f"The tensors of {path.name} differ from the manifest's contract in {different}; build the bundle again."
        )
    if engine.num_optimization_profiles != len(contract.buckets):
        raise BundleError(
            f"{path.name} has {engine.num_optimization_profiles} profile(s) and the manifest "
            f"{len(contract.buckets)} buckets; build the bundle again."
        )
