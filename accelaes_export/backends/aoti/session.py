"""An opened AOTInductor package, or one a bucket: inputs by position, outputs copied into the caller's tensors."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from accelaes_export.backends.aoti.compile import PACKAGE, package_name
from accelaes_export.backends.aoti.targets import INSTRUCTIONS, check_cpu, check_gpu, is_gpu
from accelaes_export.backends.cuda import Cuda, TorchCuda
from accelaes_export.backends.cuda_graphs import GraphedCalls
from accelaes_export.backends.graphs import GraphTensors
from accelaes_export.backends.tensor_table import StepSizes, TensorTable
from accelaes_export.backends.weights_file import WEIGHTS_FILE, load_weights
from accelaes_export.backends.workspace import Workspace, Workspaces
from accelaes_export.contract.tensors import GraphContract, TensorSpec
from accelaes_export.errors import AccelAesError, BundleError, InputError, first_line
from accelaes_export.plugins.sparse_query_attention import NAME, VERSION


class AotiSession:
    """A focus step in AOTInductor. On a GPU it is enqueued on torch's current stream, like any kernel.

    Threads may share it; their calls take turns.

    Args:
        packages: the runner of each bucket n, by n; one runner may serve several.
        contract: the tensor table.
        device: where it runs.
        cuda: the GPU, or None on the CPU.
        cuda_graphs: capture calls on a workspace's tensors, and replay them.
    """

    def __init__(
        self,
        packages: Mapping[int, Any],
        contract: GraphContract,
        device: torch.device,
        cuda: Cuda | None = None,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        self.contract = contract
        self.device = device
        self._packages = dict(packages)
        self._cuda = cuda
        self._graphed = None if cuda is None else GraphedCalls(cuda, cuda_graphs)
        self.workspaces = Workspaces(device, cuda)
        self._table = TensorTable(contract, device)
        self._lock = threading.Lock()

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
        workspace: Workspace | None = None,
    ) -> None:
        """One focus step; see `Session.run`. On a GPU, read the outputs on the same stream, or synchronise first."""
        sizes = self._table.check(inputs, outputs)
        with self._lock:
            if self._cuda is None or self._graphed is None:
                self._call(sizes, inputs, outputs)
                return
            tensors = (*inputs.items(), *outputs.items())
            key = (id(self), sizes, *((name, tensor.data_ptr()) for name, tensor in tensors))
            with self._cuda.current():
                with self._cuda.stream() as stream:
                    if self._graphed.replay(workspace, key, stream):
                        return
                self._call(sizes, inputs, outputs)
                self._graphed.capture(workspace, key, lambda _: self._call(sizes, inputs, outputs))

    def _call(self, sizes: StepSizes, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        tensors = [inputs[spec.name] for spec in self.contract.inputs]
        try:
            with torch.no_grad():
                results = self._packages[sizes.n].run(tensors)
        except RuntimeError as error:
            raise AccelAesError(f"AOTInductor failed in a focus step: {first_line(error)}.") from error
        by_name = dict(zip((spec.name for spec in self.contract.outputs), results, strict=True))
        torch._foreach_copy_(list(outputs.values()), [by_name[name] for name in outputs])


class AotiGraph:
    """A graph beside the focus step; see `OpenedGraph`. On a GPU it is enqueued on torch's current stream.

    Args:
        package: its runner.
        inputs, outputs: its tensors, on `device`.
    """

    def __init__(
        self, package: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], device: torch.device
    ) -> None:
        self._package = package
        self._tensors = GraphTensors(inputs, outputs, device)
        self._names = [spec.name for spec in outputs]
        self._lock = threading.Lock()

    def __call__(self, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        inputs = list(self._tensors.given(tensors).values())
        try:
            with self._lock, torch.no_grad():
                found = self._package.run(inputs)
        except RuntimeError as error:
            raise AccelAesError(f"AOTInductor failed in a graph beside the focus step: {first_line(error)}.") from error
        return dict(zip(self._names, found, strict=True))


def open_graph(
    files: tuple[Path, ...],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    device: torch.device,
) -> AotiGraph:
    """Open the package of a graph, with its weights where it has them beside it.

    Raises:
        BundleError: it can't be opened here.
    """
    package, *beside = files
    weights = load_weights(beside[0], device) if beside else {}
    return AotiGraph(_open(package, device, weights), inputs, outputs, device)


def open_session(
    folder: Path,
    contract: GraphContract,
    files: tuple[str, ...],
    *,
    device: str | None,
    versions: Mapping[str, str],
    targets: tuple[str, ...],
    cuda_graphs: bool,
) -> AotiSession:
    """Open a bundle's packages with their shared weights.

    Raises:
        BundleError: packages of another torch, CPU, GPU or contract.
        InputError, MissingComponentError: a device they don't run on, or that isn't there.
    """
    gpu = any(is_gpu(target) for target in targets)
    _check_torch(versions.get("torch", ""))
    if NAME in versions:
        _register_operator(versions[NAME])
    if gpu:
        cuda = TorchCuda.on(device)
        check_gpu(targets[0], cuda.compute_capability)
        where = cuda.device
    else:
        cuda = None
        if device is not None and torch.device(device).type != "cpu":
            raise InputError(
                f"This package was compiled for the CPU and was asked to run on {device}; build one with --target cuda."
            )
        if INSTRUCTIONS in versions:
            check_cpu(versions[INSTRUCTIONS])
        where = torch.device("cpu")
    weights = load_weights(folder / WEIGHTS_FILE, where) if WEIGHTS_FILE in files else {}
    opened = {name: _open(folder / name, where, weights) for name in files if name.endswith(".pt2")}
    packages = {n: opened.get(package_name(n)) or opened.get(PACKAGE) for n in contract.buckets}
    missing = [n for n, package in packages.items() if package is None]
    if missing:
        raise BundleError(f"{folder} has no package for the bucket of {missing[0]} tokens; build it again.")
    return AotiSession(packages, contract, where, cuda, cuda_graphs=cuda_graphs)


def _open(path: Path, device: torch.device, weights: Mapping[str, torch.Tensor]) -> Any:
    """A package's runner, bound to weights that it shares with others."""
    from torch._inductor import aoti_load_package

    index = device.index if device.type == "cuda" else -1
    try:
        # Single-threaded: the session has calls take turns, and a graph can't be captured of the other mode.
        package = aoti_load_package(str(path), run_single_threaded=True, device_index=index)
        wanted = package.get_constant_fqns()
        if weights:
            lacking = [name for name in wanted if name not in weights]
            if lacking:
                raise BundleError(f"The file of weights beside {path} lacks {lacking[0]}; build the bundle again.")
            package.load_constants({name: weights[name] for name in wanted}, check_full_update=True, user_managed=True)
    except RuntimeError as error:
        raise BundleError(
            f"torch {torch.__version__} can't open {path.name}: {first_line(error)}. Build the bundle again."
        ) from error
    return _Runner(package.loader, weights)


class _Runner:
    """A package's loader, and the weights it was given, which it doesn't keep alive by itself."""

    def __init__(self, loader: Any, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights
        self.run = loader.run


def _register_operator(built: str) -> None:
    """Make the attention operator known that the package calls; BundleError where it was another version's."""
    if built != VERSION:
        raise BundleError(
            f"This package calls version {built} of the attention operator and here is version {VERSION}; build the "
            "bundle again."
        )
    importlib.import_module("accelaes_export.plugins.sparse_query_attention.torch_operator")


def _check_torch(built: str) -> None:
    """BundleError for a package of another torch, whose code calls functions this one may not have."""
    here = torch.__version__
    if built and built.split(".")[:2] != here.split(".")[:2]:
        raise BundleError(
            f"This package was compiled with torch {built} and here is {here}; install torch {built.split('+')[0]}, or "
            "build the bundle again."
        )
