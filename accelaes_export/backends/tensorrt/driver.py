"""What the NVIDIA driver says of this machine's GPUs, asked of its own library: no torch, no CUDA toolkit."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True)
class CudaDevice:
    """One GPU: the driver's name for it and its compute capability, e.g. "sm89"."""

    name: str
    compute_capability: str


@dataclass(frozen=True)
class DriverReport:
    """The GPUs there are, in CUDA's order, and the driver's CUDA version; where there are none, why."""

    gpus: tuple[CudaDevice, ...] = ()
    cuda_version: str = ""
    reason: str = ""


def ask_driver() -> DriverReport:
    """Load the CUDA driver library and list the GPUs it sees; never raises."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return DriverReport(reason=f"there is no NVIDIA driver ({library} can't be loaded)")
    status = cuda.cuInit(0)
    if status:
        return DriverReport(reason=f"the NVIDIA driver found no usable GPU (cuInit returned {status})")
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_gpu(cuda, ordinal) for ordinal in range(count.value))
    reason = "" if gpus else "the NVIDIA driver lists no GPU"
    return DriverReport(gpus, f"{version.value // 1000}.{version.value % 1000 // 10}", reason)


def _gpu(cuda: ctypes.CDLL, ordinal: int) -> CudaDevice:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(128)
    cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    return CudaDevice(name.value.decode(errors="replace"), f"sm{major.value}{minor.value}")
