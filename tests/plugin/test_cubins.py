"""Kernels compiled ahead of time, without a GPU, and the pack that carries them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from accelaes_export.plugins.sparse_query_attention import compiling, cubins
from accelaes_export.plugins.sparse_query_attention.cubins import Cubin, Kernel, kernels, read_pack, write_pack
from accelaes_export.plugins.sparse_query_attention.errors import MissingError, PluginError
from accelaes_export.plugins.sparse_query_attention.tiles import Tile

pytest.importorskip("triton", reason="triton isn't installed")

PLAIN = Kernel("sm80", "fp16", 64, False, Tile(64, 64, 4, 3))
TWO_PARTS = Kernel("sm90", "bf16", 72, True, Tile(64, 64, 4, 2, descriptors=True))
ELF = b"\x7fELF"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("ACCELAES_CUBINS", raising=False)
        yield cubins.cache_folder()


@pytest.fixture(scope="module")
def compiled(cache: Path) -> tuple[Cubin, ...]:
    seen: list[tuple[int, int, str]] = []
    found = compiling.compile_kernels([PLAIN, TWO_PARTS], jobs=2, progress=lambda *done: seen.append(done))
    assert sorted(seen) == [(1, 2, seen[0][2]), (2, 2, seen[1][2])]
    assert {name for *_, name in seen} == {str(PLAIN), str(TWO_PARTS)}
    return found


def test_variants_compile_to_machine_code_of_their_architecture_without_a_gpu(compiled):
    plain, descriptors = compiled
    assert (plain.kernel, descriptors.kernel) == (PLAIN, TWO_PARTS)
    for cubin, number in ((plain, 80), (descriptors, 90)):
        assert cubin.image.startswith(ELF)
        machine, flags = struct.unpack_from("<H", cubin.image, 18)[0], struct.unpack_from("<I", cubin.image, 48)[0]
        assert machine == 190  # EM_CUDA
        assert number in (flags & 0xFF, flags >> 8 & 0xFF)
    assert plain.scratch == 0
    assert 0 < descriptors.scratch <= 1024  # eight tensor descriptors
    assert plain.shared > 64 * 64 * 2 * 2  # keys and values in a pipeline
    assert not plain.best


def test_what_was_compiled_before_is_not_compiled_again(compiled, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(compiling, "_run_worker", never)
    assert compiling.compile_kernels([TWO_PARTS, PLAIN]) == compiled[::-1]


def test_the_cache_follows_the_kernels_source_and_tritons_version(cache, monkeypatch):
    before = cubins.source_hash()
    assert before == cubins.source_hash()
    monkeypatch.setattr(cubins, "triton_version", lambda: "0.0.1")
    assert cubins.source_hash() != before


def test_a_variant_that_does_not_fit_its_gpu_is_an_error_that_names_it(cache):
    greedy = Kernel("sm86", "fp16", 128, False, Tile(128, 128, 8, 5))
    with pytest.raises(PluginError, match=r"1 of 1 kernels did not compile; the first is sm86-fp16-hd128-128x128-w8"):
        compiling.compile_kernels([greedy])
    assert not list(cache.rglob(f"{greedy}*"))


def test_without_triton_the_error_says_what_to_install(cache, monkeypatch):
    def gone(name: str) -> str:
        raise cubins.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(cubins.metadata, "version", gone)
    with pytest.raises(MissingError, match="pip install triton"):
        compiling.compile_kernels([PLAIN])


def test_a_pack_gives_back_what_was_put_in(compiled, tmp_path):
    path = tmp_path / "folder" / "kernels.cubins"
    write_pack(path, compiled[::-1])
    assert read_pack(path) == compiled  # in the kernels' order
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_rows_of_a_pack_are_where_the_cpp_library_reads_them(compiled, tmp_path):
    write_pack(tmp_path / "pack", compiled)
    data = (tmp_path / "pack").read_bytes()
    assert struct.unpack_from("<8sII", data) == (b"AXCUBIN1", 2, 48)
    for index, cubin in enumerate(compiled):
        *row, offset, size = struct.unpack_from("<8I2Q", data, 16 + 48 * index)
        kernel = cubin.kernel
        expected = [int(kernel.architecture[2:]), ("fp16", "bf16").index(kernel.dtype), kernel.head_dim, kernel.biased]
        assert row == [*expected, kernel.tile.code, cubin.best, cubin.shared, cubin.scratch]
        assert offset % 64 == 0
        assert data[offset : offset + size] == cubin.image


@pytest.mark.parametrize("damage", ["empty", "cut", "magic", "tile"])
def test_a_pack_that_is_not_whole_is_refused(compiled, tmp_path, damage):
    path = tmp_path / "pack"
    write_pack(path, compiled)
    data = bytearray(path.read_bytes())
    if damage == "magic":
        data[0] ^= 1
    if damage == "tile":
        struct.pack_into("<I", data, 16 + 16, 5)
    path.write_bytes({"empty": b"", "cut": data[:-1]}.get(damage, bytes(data)))
    with pytest.raises(PluginError, match="no whole pack"):
        read_pack(path)


def test_a_pack_that_is_not_there_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(MissingError, match="accelaes-export plugin build"):
        read_pack(tmp_path / "nowhere")


def test_every_variant_worth_having_is_listed_once():
    found = kernels(("sm80", "sm90"), ("fp16",), (64, 72))
    assert len(set(found)) == len(found)
    for architecture in ("sm80", "sm90"):
        for head_dim in (64, 72):
            mine = [kernel for kernel in found if (kernel.architecture, kernel.head_dim) == (architecture, head_dim)]
            assert sum(kernel.best for kernel in mine if not kernel.biased) == 1
            assert [kernel.best for kernel in mine if kernel.biased] == [True]
    with pytest.raises(ValueError, match="not for sm75"):
        kernels(("sm75",))
    with pytest.raises(ValueError, match="not fp32"):
        kernels(dtypes=("fp32",))
    with pytest.raises(ValueError, match="not 33"):
        kernels(head_dims=(33,))


def test_the_pack_lies_in_the_cache_or_where_a_variable_says(cache, monkeypatch):
    assert cubins.default_pack() == cache / "sparse_query_attention.cubins"
    monkeypatch.setenv("ACCELAES_CUBINS", "/some/pack")
    assert cubins.default_pack() == Path("/some/pack")


def test_facts_of_a_compiled_variant_are_plain_json(compiled, cache):
    (path,) = cache.rglob(f"{PLAIN}.json")
    facts = json.loads(path.read_text())
    assert (facts["shared"], facts["scratch"], facts["kernel"]["tile"]) == (compiled[0].shared, 0, "64x64-w4-s3")


def test_what_the_cache_holds_can_be_packed_again(compiled, cache):
    assert sorted(compiling.compiled_before(), key=lambda cubin: cubin.kernel) == sorted(
        compiled, key=lambda cubin: cubin.kernel
    )
