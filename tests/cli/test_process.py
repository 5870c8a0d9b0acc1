"""Whatever a command line is started in: closed streams, other encodings, limits, a folder that is gone."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from accelaes_export.bundle.reading import Bundle

CLI = Path(__file__).resolve().parents[2] / "cli.py"


def started(
    *arguments: object, prepare: Callable[[], Any] | None = None, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, str(CLI), *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120, "check": False} | options
    return subprocess.run(command, preexec_fn=prepare, **options)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp437"])
def test_every_encoding_can_be_printed_in(bundle: Bundle, encoding: str) -> None:
    done = started("inspect", bundle.path, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    assert "Plan of accelaes, 28 steps" in text
    assert ("θ" in text) == (encoding == "utf-8") and ("θ" in text or "theta" in text)


def test_a_name_that_is_no_text_can_be_printed(bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    bundle.path.rename(folder)
    done = started("inspect", os.fsencode(folder).decode("utf-8", "surrogateescape"))
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_has_seen_enough_is_no_failure(bundle: Bundle) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = started("inspect", bundle.path, "--json", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_output_that_is_lost_is_one(bundle: Bundle) -> None:
    with Path("/dev/full").open("wb") as full:
        done = started("inspect", bundle.path, stdout=full)
    assert done.returncode == 3
    assert done.stderr == b"error: Standard output can't be written: No space left on device.\n"


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_are_written_to_nowhere(bundle: Bundle, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for handle in closed:
            os.close(handle)

    assert started("inspect", bundle.path, prepare=close).returncode == 0
    assert started("inspect", "nowhere", prepare=close).returncode == 2


def test_a_working_folder_that_is_gone_is_said(bundle: Bundle, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = started("inspect", bundle.path, cwd=gone, prepare=gone.rmdir)
    assert done.returncode == 2 and b"cd to another" in done.stderr


@pytest.mark.parametrize(
    ("limit", "value", "code", "said"),
    [
        (resource.RLIMIT_NOFILE, 8, 2, b"Only 8 files may be open at once"),
        (resource.RLIMIT_AS, 2 * 10**9, 2, b"GB of addresses (ulimit -v)"),
        (resource.RLIMIT_FSIZE, 100, 3, b"out.png can't be written: a limit on file sizes"),
    ],
)
def test_limits_are_said_before_anything_is_loaded(
    bundle: Bundle, tmp_path: Path, limit: int, value: int, code: int, said: bytes
) -> None:
    def lower() -> None:
        resource.setrlimit(limit, (value, value))

    done = started("run", bundle.path, "--prompt", "a red star", "-o", tmp_path / "out.png", prepare=lower)
    assert (done.returncode, done.stdout) == (code, b"") and said in done.stderr
    assert not (tmp_path / "out.png").exists()
