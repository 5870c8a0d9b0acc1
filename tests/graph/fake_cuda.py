"""A focus step on CUDA tensors that have no memory: what tracing for a GPU decides, on a machine without one."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

_GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>); }
"""


def allow_cuda_tensors(folder: Path) -> None:
    """Let a CPU build of torch index fake CUDA tensors, which asks for the device's guard: one that does nothing."""
    if torch.version.cuda:
        return
    source, library = folder / "guard.cpp", folder / "guard.so"
    source.write_text(_GUARD)
    torch_folder = Path(torch.__file__).parent
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", str(source), "-o", str(library)]
    command += [f"-I{torch_folder / 'include'}", f"-L{torch_folder / 'lib'}", "-lc10"]
    subprocess.run(command, check=True)
    ctypes.CDLL(str(library))


@contextmanager
def on_cuda(module: torch.nn.Module) -> Iterator[None]:
    """Inside, the module's weights are fake tensors on cuda:0, and so is everything that is made or drawn."""
    host = torch.Generator()  # a CPU build of torch has no other, and what has no memory needs none
    with (
        mock.patch.object(torch, "Generator", lambda device: host),
        FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True),
    ):
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    made = torch.empty(weight.shape, dtype=weight.dtype, device="cuda:0")
                    part._parameters[name] = torch.nn.Parameter(made, requires_grad=False)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda:0")
        yield
