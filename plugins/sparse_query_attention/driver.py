"""Compiled kernels launched through the CUDA driver API, found at run time: no CUDA package is needed."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelaes_export.plugins.sparse_query_attention.cubins import Cubin, default_pack, read_pack
from accelaes_export.plugins.sparse_query_attention.errors import MissingError, PluginError
from accelaes_export.plugins.sparse_query_attention.launching import PARAMETERS, Sizes, grid, parameters
from accelaes_export.plugins.sparse_query_attention.tiles import binary_architecture

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_SHARED_MEMORY = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_WITHOUT_ASKING = 48 * 1024  # shared memory that every program may have
_FUNCTION = b"attention"
_TYPES = {"pointer": ctypes.c_void_p, "float": ctypes.c_float, "int32": ctypes.c_int32, "int64": ctypes.c_int64}


class Driver:
    """The CUDA driver and the kernels loaded into its contexts. One for the process is enough; threads may share it.

    Args:
        library: libcuda, or a stand-in.
        pack: the compiled kernels; read when the first is wanted.
    """

    def __init__(self, library: Any, pack: Path | None = None) -> None:
        self._cuda = library
        self._pack = pack or default_pack()
        self._cubins: tuple[Cubin, ...] | None = None
        self._functions: dict[tuple[int, Cubin], Any] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, pack: Path | None = None) -> Driver:
        """This machine's driver; MissingError where there is none."""
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise MissingError(
                f"The attention kernel runs on an NVIDIA GPU, and {_LIBRARY} can't be loaded."
            ) from error
        driver = cls(library, pack)
        driver._call("cuInit", 0)
        return driver

    def capability(self) -> tuple[int, int]:
        """Compute capability of the current context's device, or of the first where no context is current."""
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        if context.value:
            self._call("cuCtxGetDevice", ctypes.byref(device))
        else:
            self._call("cuDeviceGet", ctypes.byref(device), 0)
        numbers = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
            numbers.append(value.value)
        return numbers[0], numbers[1]

    def candidates(self, dtype: str, head_dim: int, biased: bool) -> tuple[Cubin, ...]:
        """The compiled kernels for the current GPU, the table's choice first.

        Raises MissingError where there are none, with the command that compiles them.
        """
        major, minor = self.capability()
        architecture = binary_architecture(major, minor)
        if self._cubins is None:
            self._cubins = read_pack(self._pack)
        found = [
            cubin
            for cubin in self._cubins
            if (cubin.kernel.architecture, cubin.kernel.dtype, cubin.kernel.head_dim, cubin.kernel.biased)
            == (architecture, dtype, head_dim, biased)
        ]
        if not found:
            raise MissingError(
                f"{self._pack} has no attention kernel for a GPU of sm{major}{minor}, {dtype}, head size {head_dim}; "
                f"run accelaes-export plugin build --arch {architecture or 'sm80'} --head-dim {head_dim}."
            )
        return tuple(sorted(found, key=lambda cubin: not cubin.best))

    def choose(self, dtype: str, head_dim: int, biased: bool, tile: int) -> Cubin:
        """The kernel of the tile with this code; of the table's own choice for 0 or a code that isn't compiled."""
        found = self.candidates(dtype, head_dim, biased)
        return next((cubin for cubin in found if cubin.kernel.tile.code == tile), found[0])

    def launch(
        self, cubin: Cubin, sizes: Sizes, scale: float, pointers: Sequence[int], scratch: int, stream: int
    ) -> None:
        """Enqueue one call on `stream`; see `launching.parameters` for the pointers."""
        if not sizes.batch * sizes.heads * sizes.queries:
            return
        values = parameters(sizes, scale, pointers, scratch)
        boxes = [_TYPES[kind](value) for (_, kind), value in zip(PARAMETERS, values, strict=True)]
        addresses = (ctypes.c_void_p * len(boxes))(*(ctypes.addressof(box) for box in boxes))
        threads = 32 * cubin.kernel.tile.warps
        self._call(
            "cuLaunchKernel",
            self._function(cubin),
            *grid(sizes, cubin.kernel.tile),
            *(threads, 1, 1),
            cubin.shared,
            ctypes.c_void_p(stream),
            addresses,
            None,
        )

    def _function(self, cubin: Cubin) -> Any:
        context = ctypes.c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        key = (context.value or 0, cubin)
        with self._lock:
            if key not in self._functions:
                module, function = ctypes.c_void_p(), ctypes.c_void_p()
                self._call("cuModuleLoadData", ctypes.byref(module), cubin.image)
                self._call("cuModuleGetFunction", ctypes.byref(function), module, _FUNCTION)
                if cubin.shared > _WITHOUT_ASKING:
                    self._call("cuFuncSetAttribute", function, _SHARED_MEMORY, cubin.shared)
                self._functions[key] = function
            return self._functions[key]

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(text))
            raise PluginError(f"{name} failed with CUDA error {code}: {(text.value or b'unknown').decode()}.")
