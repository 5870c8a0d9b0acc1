"""`accelaes-export plugin build`, and what doctor says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from accelaes_export.cli import plugin_build
from accelaes_export.plugins.sparse_query_attention.cubins import Cubin, read_pack
from accelaes_export.plugins.sparse_query_attention.errors import MissingError, PluginError
from tests.cli.conftest import Command


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ACCELAES_CUBINS", raising=False)
    monkeypatch.delenv("ACCELAES_PLUGIN", raising=False)
    return tmp_path / "cache" / "accelaes-export" / "plugin"


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[Cubin]:
    """In place of Triton (tests/plugin/test_cubins.py has the real one): remembers what it made."""
    made: list[Cubin] = []

    def compile_kernels(wanted, *, jobs=None, progress=None):
        cubins = [Cubin(kernel, kernel.best, 0, 0, str(kernel).encode()) for kernel in wanted]
        made.extend(cubins)
        progress(len(cubins), len(cubins), str(wanted[-1]))
        return tuple(cubins)

    monkeypatch.setattr(plugin_build, "compile_kernels", compile_kernels)
    monkeypatch.setattr(plugin_build, "compiled_before", lambda: tuple(made))
    return made


def test_kernels_are_compiled_into_the_cache_beside_those_of_before(command: Command, compiler, cache: Path) -> None:
    first = command("plugin", "build", "--arch", "sm86", "--dtype", "fp16", "--head-dim", "64")
    assert (first.exit_code, first.stderr) == (0, "4/4 sm86-fp16-hd64-bias-128x64-w4-s3\n")
    pack = cache / "sparse_query_attention.cubins"
    assert first.stdout == f"Kernels {pack}: 4 for sm86, {pack.stat().st_size / 1e3:.1f} kB\n"
    second = command("plugin", "build", "--arch", "sm120", "--dtype", "fp16", "--head-dim", "64,72")
    assert "12 for sm86, sm120" in second.stdout
    assert {(c.kernel.architecture, c.kernel.head_dim) for c in read_pack(pack)} == {
        ("sm86", 64),
        ("sm120", 64),
        ("sm120", 72),
    }
    assert "in Python, 12 kernels for sm86, sm120" in " ".join(command("doctor").stdout.split())


def test_a_named_file_has_what_was_asked_for_alone(command: Command, compiler, cache: Path, tmp_path: Path) -> None:
    command("plugin", "build", "--arch", "sm86", "--head-dim", "64")
    result = command("plugin", "build", "--arch", "sm80", "--head-dim", "128", "--dtype", "bf16", "-o", "own/k.cubins")
    assert result.exit_code == 0
    assert {(c.kernel.architecture, c.kernel.dtype, c.kernel.head_dim) for c in read_pack(Path("own/k.cubins"))} == {
        ("sm80", "bf16", 128)
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arch", "sm75"], "The kernel compiles for sm80, sm86, sm89, sm90, sm100, sm120, not for sm75"),
        (["--dtype", "fp32"], "The kernel takes fp16 and bf16, not fp32."),
        (["--head-dim", "33"], "head sizes from 32 to 256 in steps of 8, not 33."),
        (["--head-dim", "large"], "--head-dim is 'large'; give head sizes"),
    ],
)
def test_what_the_kernel_does_not_have_is_bad_input(command: Command, arguments: list[str], said: str) -> None:
    result = command("plugin", "build", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(("error", "code"), [(MissingError("pip install triton."), 4), (PluginError("It broke."), 3)])
def test_a_compiler_that_is_missing_or_fails_has_its_own_exit_code(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(plugin_build, "compile_kernels", fail)
    result = command("plugin", "build", "--arch", "sm86")
    assert (result.exit_code, result.stderr.strip()) == (code, f"error: {error}")


def test_doctor_names_a_library_and_says_how_to_get_kernels(command: Command, monkeypatch, tmp_path: Path) -> None:
    assert "no compiled kernels (accelaes-export plugin build)" in " ".join(command("doctor").stdout.split())
    monkeypatch.setenv("ACCELAES_PLUGIN", "/nowhere/libaccelaes_plugin.so")
    assert "/nowhere/libaccelaes_plugin.so, which is not there" in " ".join(command("doctor").stdout.split())
