"""What differs between TensorRT for RTX and TensorRT proper; everything else in this folder serves both."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from accelaes_export.errors import MissingComponentError

NATIVE = "native"
"""The target that stands for the GPU of the building machine."""


@dataclass(frozen=True)
class Flavour:
    """One of the two libraries.

    Attributes:
        name: the backend's name.
        module: the Python module that is imported.
        package: its distribution, whose exact release an engine is tied to.
        install: the command that brings it.
        targets: what an engine can be built for, beside `NATIVE`; "sm80+" is SM 80 and every later one.
        default_targets: what it is built for when nothing is asked.
        builds_without_gpu: compiles for a named target on a machine without one.
        decompose_fp32_attention: its fused attention has no fp32 kernel, so fp32 nodes must be marked decomposable.
        shared_keys_crash: its builder crashes on two attentions over the same keys.
        timing_cache: times kernels while it builds and can keep the timings in a file.
        specialises_kernels: compiles kernels for the shapes it meets while it runs.
    """

    name: str
    module: str
    package: str
    install: str
    targets: tuple[str, ...]
    default_targets: tuple[str, ...]
    builds_without_gpu: bool
    decompose_fp32_attention: bool
    shared_keys_crash: bool
    timing_cache: bool
    specialises_kernels: bool

    def supports(self, found: str) -> bool:
        """Whether engines can be made for a GPU of compute capability `found`, e.g. "sm90"."""
        # A flavour with an open-ended target builds for whatever GPU it finds.
        return found in self.targets or any(target.endswith("+") for target in self.targets)

    def aim(self, trt: Any, config: Any, targets: tuple[str, ...]) -> None:
        """Set a builder's configuration for GPUs of the compute capabilities `targets`."""
        if self.builds_without_gpu:
            config.num_compute_capabilities = len(targets)
            for index, target in enumerate(targets):
                config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
        elif "sm80+" in targets:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def load(self) -> Any:
        """The library's module, or MissingComponentError with the command that installs it."""
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError) as error:  # OSError: a shared library beside the bindings is missing
            raise MissingComponentError(
                f"The {self.name} backend needs the Python module {self.module}, which can't be imported ({error}): "
                f"{self.install}."
            ) from error


RTX = Flavour(
    name="tensorrt-rtx",
    module="tensorrt_rtx",
    package="tensorrt-rtx",
    install="pip install tensorrt-rtx",
    targets=("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
    default_targets=("sm80", "sm86", "sm89", "sm120"),
    builds_without_gpu=True,
    decompose_fp32_attention=True,
    shared_keys_crash=True,
    timing_cache=False,
    specialises_kernels=True,
)

STANDARD = Flavour(
    name="tensorrt",
    module="tensorrt",
    package="tensorrt",
    install="pip install tensorrt (its libraries come from NVIDIA's own package index)",
    targets=("sm80+",),
    default_targets=(NATIVE,),
    builds_without_gpu=False,
    decompose_fp32_attention=False,
    shared_keys_crash=False,
    timing_cache=True,
    specialises_kernels=False,
)


def capability(target: str) -> int:
    """The number in "sm86" or "sm80+"; 0 for anything else."""
    found = re.fullmatch(r"sm(\d+)\+?", target)
    return int(found[1]) if found else 0


def fits(target: str, own: str) -> bool:
    """Whether an engine built for `target` runs on a GPU of compute capability `own`."""
    return target == own or (target.endswith("+") and capability(own) >= capability(target))
