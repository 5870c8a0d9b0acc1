"""A compiled kernel's launch through a stand-in for the CUDA driver: every parameter is what the kernel expects."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.plugin.interpreted  # noqa: F401  (before the kernel)
from accelaes_export.plugins.sparse_query_attention import kernel
from accelaes_export.plugins.sparse_query_attention.compiling import ROW_STRIDES
from accelaes_export.plugins.sparse_query_attention.cubins import Cubin, Kernel, write_pack
from accelaes_export.plugins.sparse_query_attention.driver import Driver
from accelaes_export.plugins.sparse_query_attention.errors import MissingError, PluginError
from accelaes_export.plugins.sparse_query_attention.launching import PARAMETERS, Sizes, grid, scratch_bytes
from accelaes_export.plugins.sparse_query_attention.tiles import ARCHITECTURES, Tile, choice

CPP = Path(__file__).parents[2] / "plugins/sparse_query_attention/cpp"
CONSTANTS = {"HD", "WIDTH", "REST", "BLOCK_M", "BLOCK_N", "BIASED", "DESCRIPTORS", *ROW_STRIDES}


class StandInDriver:
    """libcuda's functions that are called, over a GPU of one compute capability; remembers launches."""

    def __init__(self, major: int = 8, minor: int = 6) -> None:
        self.capability = {75: major, 76: minor}
        self.launches: list[dict[str, Any]] = []
        self.loaded: list[bytes] = []
        self.shared: list[int] = []
        self.refusal = 0

    def cuCtxGetCurrent(self, context: Any) -> int:
        context._obj.value = 7
        return 0

    def cuCtxGetDevice(self, device: Any) -> int:
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = self.capability[attribute]
        return 0

    def cuModuleLoadData(self, module: Any, image: bytes) -> int:
        self.loaded.append(image)
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        assert name == b"attention"
        function._obj.value = len(self.loaded)
        return 0

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> int:
        assert attribute == 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.shared.append(value)
        return 0

    def cuLaunchKernel(self, function: Any, *rest: Any) -> int:
        *shape, shared, stream, addresses, extra = rest
        kinds = {"pointer": ctypes.c_void_p, "float": ctypes.c_float, "int32": ctypes.c_int32, "int64": ctypes.c_int64}
        values = {
            name: ctypes.cast(address, ctypes.POINTER(kinds[kind])).contents.value
            for (name, kind), address in zip(PARAMETERS, addresses, strict=True)
        }
        found = {"function": function.value, "grid": shape[:3], "block": shape[3:], "shared": shared}
        self.launches.append(found | {"stream": stream.value, "values": values})
        assert extra is None
        return self.refusal

    def cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = b"an illegal memory access was encountered"
        return 0


BEST = Cubin(Kernel("sm86", "fp16", 64, False, Tile(128, 64, 4, 3)), True, 49152 + 1, 0, b"best")
OTHER = Cubin(Kernel("sm86", "fp16", 64, False, Tile(64, 64, 8, 3)), False, 1024, 512, b"other")
ELSEWHERE = Cubin(Kernel("sm80", "fp16", 64, False, Tile(64, 64, 4, 3)), True, 1024, 0, b"elsewhere")
BIASED = Cubin(Kernel("sm86", "fp16", 64, True, Tile(128, 64, 4, 3)), True, 1024, 0, b"biased")


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    write_pack(tmp_path / "pack", [BEST, OTHER, ELSEWHERE, BIASED])
    return tmp_path / "pack"


def test_the_parameters_are_the_kernels_own_arguments_less_its_constants_and_tritons_two_pointers():
    arguments = [name for name in kernel.attention.arg_names if name not in CONSTANTS]
    assert [name for name, _ in PARAMETERS] == [*arguments, "scratch", "profile"]


def test_cpp_passes_as_many_parameters_in_the_same_order():
    source = (CPP / "launch.cpp").read_text(encoding="utf-8")
    listed = re.search(r"void\* parameters\[\] = \{(.*?)\};", source, re.DOTALL)
    names = re.findall(r"&(\w+)", listed[1])
    meant = {"k_bg": "kb", "v_bg": "vb"}
    expected = []
    for name, kind in PARAMETERS:
        # v is shaped as k and out as q, so C++ has one set of strides for each pair.
        shared = {"v": "k", "vb": "kb", "out": "q"}
        owner, _, axis = name.partition("_")
        if kind == "int64" and owner != "bias":
            expected.append(shared.get(owner, owner) + axis.title())
        elif kind == "int64":
            expected.append(owner + axis.title())
        else:
            expected.append(meant.get(name, name))
    assert names == expected


@pytest.mark.parametrize("bias", [None, (2, 1, 5, 20), (1, 1, 1, 20), (2, 1, 1, 20), (1, 1, 5, 20)])
def test_strides_are_those_of_contiguous_tensors(pack, bias):
    library = StandInDriver()
    driver = Driver(library, pack)
    shapes = [(2, 4, 5, 64), *[(2, 2, 13, 64)] * 2, *[(2, 2, 7, 64)] * 2]
    sizes = Sizes.of([*shapes, bias] if bias else shapes)
    cubin = driver.choose("fp16", 64, bias is not None, 0)
    driver.launch(cubin, sizes, 0.125, [11, 12, 13, 14, 15, 16 if bias else 0, 17], scratch=18, stream=19)
    (launch,) = library.launches
    values = launch["values"]
    tensors = {name: torch.empty(shape) for name, shape in zip(("q", "k", "v", "kb", "vb"), shapes, strict=True)}
    tensors["out"] = tensors["q"]
    for name, tensor in tensors.items():
        assert (values[f"{name}_batch"], values[f"{name}_head"]) == tensor.stride()[:2]
        assert tensor.stride()[2:] == (64, 1)  # what the kernel was compiled for
    strides = (0, 0)
    if bias:
        expanded = torch.empty(bias).expand(2, 1, 5, 20).stride()
        strides = (expanded[0], expanded[2])
    assert (values["bias_batch"], values["bias_row"]) == strides
    sizes_passed = [values[name] for name in ("queries", "keys", "background", "group")]
    assert (values["scale"], sizes_passed) == (0.125, [5, 13, 7, 2])
    assert [values[n] for n in ("q", "k", "v", "k_bg", "v_bg", "out")] == [11, 12, 13, 14, 15, 17]
    assert (values["bias"], values["scratch"], values["profile"]) == (16 if bias else None, 18, None)
    assert (launch["grid"], launch["block"], launch["stream"]) == ([1, 4, 2], [128, 1, 1], 19)


def test_a_kernel_is_loaded_once_and_given_the_shared_memory_it_needs(pack):
    library = StandInDriver()
    driver = Driver(library, pack)
    sizes = Sizes(1, 1, 1, 200, 3, 0, 64)
    for code in (0, 0, OTHER.kernel.tile.code, 12345):
        driver.launch(driver.choose("fp16", 64, False, code), sizes, 1.0, [0] * 7, 0, 0)
    assert library.loaded == [b"best", b"other"]
    assert library.shared == [49153]
    assert [launch["function"] for launch in library.launches] == [1, 1, 2, 1]  # an unknown tile: the table's choice
    assert [launch["grid"][0] for launch in library.launches] == [2, 2, 4, 2]


def test_an_empty_call_launches_nothing(pack):
    library = StandInDriver()
    Driver(library, pack).launch(BEST, Sizes(1, 1, 1, 0, 3, 0, 64), 1.0, [0] * 7, 0, 0)
    assert not library.launches


def test_tactics_are_the_kernels_compiled_for_this_gpu_the_tables_choice_first(pack):
    driver = Driver(StandInDriver(8, 7), pack)  # runs sm86's binary code
    assert driver.candidates("fp16", 64, False) == (BEST, OTHER)
    assert Driver(StandInDriver(8, 0), pack).candidates("fp16", 64, False) == (ELSEWHERE,)
    with pytest.raises(MissingError, match=r"a GPU of sm120, fp16, head size 64; run .* --arch sm120 --head-dim 64"):
        Driver(StandInDriver(12, 0), pack).candidates("fp16", 64, False)
    with pytest.raises(MissingError, match="bf16"):
        driver.candidates("bf16", 64, False)


def test_the_drivers_own_words_are_quoted(pack):
    library = StandInDriver()
    library.refusal = 700
    driver = Driver(library, pack)
    with pytest.raises(PluginError, match="cuLaunchKernel failed with CUDA error 700: an illegal memory access"):
        driver.launch(BEST, Sizes(1, 1, 1, 1, 3, 0, 64), 1.0, [0] * 7, 0, 0)


def test_shapes_that_do_not_fit_together_are_refused():
    good = [(1, 4, 5, 64), *[(1, 2, 6, 64)] * 2, *[(1, 2, 3, 64)] * 2]
    assert Sizes.of([*good, (1, 1, 1, 9)]).bias == (1, 1, 1, 9)
    with pytest.raises(ValueError, match="must be"):
        Sizes.of([*good, (1, 1, 5, 8)])
    for index, wrong in ((1, (1, 2, 7, 64)), (2, (1, 3, 6, 64)), (4, (1, 2, 3, 32)), (0, (1, 3, 5, 64))):
        with pytest.raises(ValueError, match="don't fit"):
            Sizes.of([wrong if i == index else shape for i, shape in enumerate(good)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scratch_memory_is_enough_for_every_tile_of_the_table(architecture):
    for head_dim in (64, 72, 128, 256):
        for tile in choice(architecture, head_dim).candidates:
            for queries in (1, 64, 65, 4096):
                sizes = Sizes(2, 24, 24, queries, 1, 0, head_dim)
                tiles, heads, rows = grid(sizes, tile)
                assert tiles * heads * rows * 1024 <= scratch_bytes(2, 24, queries)
    assert scratch_bytes(2, 24, 4096) == 64 * 24 * 2 * 1024
