"""What every engine format provides: is it usable here, compile a focus step, open it as a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from accelaes_export.contract.compile_options import CompileOptions
from accelaes_export.contract.tensors import GraphContract

if TYPE_CHECKING:
    import torch

    from accelaes_export.backends.graphs import GraphRequest, OpenedGraph
    from accelaes_export.backends.workspace import Workspace, Workspaces
    from accelaes_export.contract.tensors import TensorSpec

Weights = Literal["engine", "inputs"]
Attention = Literal["native", "plugin"]
Progress = Callable[[str, float | None], None]
"""Called with a phase's name and its done fraction in [0, 1] (None while unknown)."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can compile and run on this machine; where not, why and the command that mends it."""

    can_build: bool
    can_run: bool
    versions: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    remedy: str = ""


class FocusProgram(Protocol):
    """The focus step as a torch program, for backends that compile it themselves instead of reading ONNX."""

    def trace(
        self, device: torch.device, n: int | None = None, *, filled: bool = False, operator: bool = False
    ) -> torch.export.ExportedProgram:
        """The program on `device`, B and M dynamic.

        Args:
            n: trace for this bucket alone; None leaves n and m dynamic.
            filled: with all its weights; otherwise large matrices may hold anything, and `weight` has their values.
            operator: leave attention to the plugin's torch operator; otherwise it is written out in standard ones.

        Raises:
            BuildError: tracing failed.
        """
        ...

    def weight(self, name: str) -> torch.Tensor:
        """The value of one of the program's parameters, buffers or constants; contiguous."""
        ...


@dataclass(frozen=True)
class CompileRequest:
    """One engine to make.

    Attributes:
        onnx: the exported focus step (with its external data beside it, if any); None for a backend that reads
            programs.
        contract: its tensor table and buckets.
        targets: compute capabilities ("sm86", "sm120"), or ("cpu",) where the backend has no other.
        destination: an existing, empty folder that receives the engine's files.
        timing_cache: a file kept between builds, or None; formats that time no kernels leave it alone.
        workspace_bytes: the builder's limit on device scratch memory, or None for the format's own.
        weights: "engine": compiled into it; "inputs": in a file of their own, and bound when the engine is opened, so
            that the builder needs no memory for them.
        attention: "plugin": our plugin for TensorRT, our torch operator for aoti; "native": the format's own kernels.
        program: the focus step for a backend that reads programs.
        options: for formats that generate kernels.
    """

    onnx: Path | None
    contract: GraphContract
    targets: tuple[str, ...]
    destination: Path
    timing_cache: Path | None = None
    workspace_bytes: int | None = None
    weights: Weights = "engine"
    attention: Attention = "native"
    program: FocusProgram | None = None
    options: CompileOptions = field(default_factory=CompileOptions)

    @property
    def onnx_file(self) -> Path:
        """The exported focus step, of a request to a backend that reads ONNX."""
        assert self.onnx is not None, "the builder exports for backends that read ONNX"
        return self.onnx


@dataclass(frozen=True)
class CompiledEngine:
    """Files written below the destination (relative names), the versions that made them, and notes for the manifest."""

    files: tuple[str, ...]
    versions: Mapping[str, str]
    targets: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class KernelTime:
    """One kind of kernel, operator or layer: how often it ran and its seconds, over several calls of a session."""

    name: str
    calls: int
    seconds: float


class Session(Protocol):
    """An opened engine. Safe to share between threads; holds no per-image state.

    `workspaces` are for runs on it, one after the other.
    """

    contract: GraphContract
    device: torch.device
    workspaces: Workspaces

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
        workspace: Workspace | None = None,
    ) -> None:
        """One focus step: read `inputs`, write into the given `outputs`.

        Tensors are contiguous, on `device`, named and shaped as the contract says; n and m follow from the
        shapes. Outputs left out of the mapping are not copied anywhere. `workspace` is the one that all these tensors
        are of, or None: only calls with one are worth a CUDA graph. Raises InputError for a bucket,
        batch or text length the engine was not built for.

        A session that can tell where its time goes has a second method, `kernel_times(inputs, outputs, calls)`: the
        same call so many times, as a tuple of `KernelTime`.
        """


class Backend(Protocol):
    """An engine format. Heavy packages are imported inside the methods, never at import time.

    What it is is said here and nowhere else: no other module knows a backend by its name.

    Attributes:
        name: what the registry and bundles call it.
        reads: what its CompileRequest must hold.
        dtypes: of engines.
        default_targets: what is compiled for when nobody says.
        target_words: what can be compiled for beside compute capabilities; some of them, where it has a list.
        runs_code: opening an engine runs machine code in it, of whoever made it.
        dynamic_text: sessions take any M up to the position limit, not just the recipe's window.
        takes_plugin: our attention kernel can be in its engines.
        weights_beside: weights can lie beside an engine as inputs.
        layerwise: takes steps in which every part computes a number of tokens of its own.
        version_bound: the distribution whose exact release (major.minor.patch) an engine is tied to, or None.
        packages: distributions whose versions say how fast it is.
    """

    name: str
    reads: Literal["onnx", "program"]
    dtypes: tuple[str, ...]
    default_targets: tuple[str, ...]
    target_words: tuple[str, ...]
    runs_code: bool
    dynamic_text: bool
    takes_plugin: bool
    weights_beside: bool
    layerwise: bool
    version_bound: str | None
    packages: tuple[str, ...]

    def availability(self) -> Availability: ...

    def check(self, dtype: str, targets: tuple[str, ...]) -> None:
        """Raise InputError for a dtype or target it can't do, MissingComponentError where it can't build here."""

    def for_gpu(self, targets: tuple[str, ...]) -> bool:
        """Whether engines for these targets run on GPUs, whose libraries make a plan for every new shape."""
        ...

    def architectures(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        """The targets as architectures a kernel was measured on ("sm90"), where they name any."""
        ...

    def weight_copies(self, weights: Weights, options: CompileOptions, targets: tuple[str, ...]) -> float:
        """How many times compiling holds all weights in this machine's memory; 0 where it never does."""
        ...

    def compile(self, request: CompileRequest, progress: Progress) -> CompiledEngine: ...

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
    ) -> Session:
        """Open the engine `files` in a bundle's `folder`.

        Args:
            device: "cpu", "cuda" or "cuda:1"; None takes the best this backend finds here.
            versions, targets: what the manifest says the engine was built with and for. Only used to explain:
                an engine that doesn't open is blamed on the difference, with both sides named.
            cuda_graphs: capture a workspace's calls as CUDA graphs, where the format can.

        Raises BundleError for an engine that doesn't fit the contract, this library or this GPU, and
        MissingComponentError, saying what would mend it, for a library or device that isn't here.
        """
        ...

    def compile_graph(self, request: GraphRequest) -> tuple[str, ...]:
        """Make a graph beside the focus step in this format; the files written below the destination.

        Raises:
            BuildError: the format's compiler failed.
        """
        ...

    def open_graph(
        self,
        files: tuple[Path, ...],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        device: torch.device,
    ) -> OpenedGraph:
        """Open one, on the device of an opened session of the same bundle.

        Raises:
            BundleError, MissingComponentError: as `open`.
        """
        ...
