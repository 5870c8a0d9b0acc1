"""The GPU as NVML sees it: clocks, power, temperature, what holds it back, and who else is on it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PIP_LINE = "pip install nvidia-ml-py"
_MILLI = 1e-3
_HOLDS_BACK = {
    "nvmlClocksEventReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksEventReasonSwThermalSlowdown": "temperature",
    "nvmlClocksEventReasonHwThermalSlowdown": "temperature (hardware)",
    "nvmlClocksEventReasonSwPowerCap": "power limit",
    "nvmlClocksEventReasonHwPowerBrakeSlowdown": "power brake",
}
"""NVML's reasons that make a run slower than another one, as people call them."""


def describe(device: torch.device) -> dict[str, Any]:
    """Name, compute capability, memory, driver and CUDA."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    found: dict[str, Any] = {
        "name": properties.name,
        "capability": f"sm{properties.major}{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "fp32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    nvml = _nvml()
    if nvml is not None:
        with suppress(nvml.NVMLError):  # what it doesn't tell is left out: no figure depends on it
            found["driver"] = _text(nvml.nvmlSystemGetDriverVersion())
    return found


def observe(device: torch.device, nvml: Any = None) -> dict[str, Any]:
    """Clocks in MHz, power in watts, temperature in degrees Celsius, and other processes' memory.

    What a driver doesn't tell is left out. Without NVML's package there is only a line that says so.
    """
    nvml = nvml or _nvml()
    if nvml is None:
        return {"missing": f"clocks, power and temperature were not read: {_PIP_LINE}."}
    try:
        handle = _handle(nvml, device)
    except nvml.NVMLError as error:  # a slice of a GPU, or one that this container doesn't see by its number
        return {"missing": f"clocks, power and temperature were not read: NVML says {error}."}
    asked = {
        "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "sm_mhz_limit": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "watts": lambda: _MILLI * nvml.nvmlDeviceGetPowerUsage(handle),
        "watts_limit": lambda: _MILLI * nvml.nvmlDeviceGetEnforcedPowerLimit(handle),
        "celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "held_back_by": lambda: _held_back_by(nvml, handle),
        "others": lambda: _others(nvml, handle),
    }
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = ask()
        except nvml.NVMLError:  # not every GPU and container tells everything
            continue
    return found


def doubts(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    """What two observations say against the figures between them."""
    found = []
    if "missing" in before:
        found.append(f"Of the GPU {before['missing']}")
    others = {**before.get("others", {}), **after.get("others", {})}
    if others:
        listed = ", ".join(f"process {pid} ({size / 1e9:.1f} GB)" for pid, size in others.items())
        found.append(f"The GPU was shared: {listed}.")
    reasons = sorted({*before.get("held_back_by", ()), *after.get("held_back_by", ())})
    if reasons:
        found.append(f"The GPU's clock was held back by {', '.join(reasons)}.")
    return tuple(found)


def _nvml() -> Any:
    """The package, initialised; None where it or the driver isn't there."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _handle(nvml: Any, device: torch.device) -> Any:
    """NVML numbers GPUs its own way; the UUID says which one torch means."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if uuid is not None:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    return nvml.nvmlDeviceGetHandleByIndex(device.index or 0)


def _held_back_by(nvml: Any, handle: Any) -> list[str]:
    reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    return [said for name, said in _HOLDS_BACK.items() if reasons & getattr(nvml, name, 0)]


def _others(nvml: Any, handle: Any) -> dict[int, int]:
    """Process id to bytes; NVML doesn't always tell a container's bytes."""
    running = {process.pid: process.usedGpuMemory or 0 for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    # In a container we may be listed under the host's number: then one of them, whichever, is this process.
    own = os.getpid() if os.getpid() in running else next(iter(running), None)
    return {pid: size for pid, size in running.items() if pid != own}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
