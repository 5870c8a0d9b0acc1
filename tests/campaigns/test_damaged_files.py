"""Damaged files: each is refused in a sentence, whatever the bytes and whatever stands in a file's place."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaigns.opened_bundle import MANIFEST, open_and_run, rehash, tiny
from tests.campaigns.size import attempts

pytestmark = pytest.mark.campaign

SECONDS = 60.0  # that opening a tiny bundle and one step may take on a busy machine


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "tiny"
    tiny(folder)
    return folder


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[Path], str]:
    """What came of opening a folder and running a step in a process of its own; a crash or a hang is a failure."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["accelaes_export.bundle.reading", "accelaes_export.contract.example_inputs", "onnxruntime"]
    )

    def in_a_process(folder: Path) -> str:
        verdict = tmp_path / "verdict"
        verdict.unlink(missing_ok=True)
        process = context.Process(target=open_and_run, args=(folder, verdict))
        process.start()
        process.join(SECONDS)
        hangs = process.is_alive()
        process.kill()
        process.join()
        assert not hangs, "opening hangs"
        assert process.exitcode == 0 and verdict.exists(), f"the process died by {process.exitcode}"
        return verdict.read_text()

    return in_a_process


def damage_bytes(content: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, left out, doubled or put in; never the content itself."""
    at = chance.randrange(len(content) + 1)
    some = chance.choice((1, 1, 4, 64, 1024))
    damaged = chance.choice(
        (
            content[:at] + chance.randbytes(some) + content[at + some :],
            content[:at] + bytes(some) + content[at + some :],
            content[:at] + content[at + some :],
            content[:at],
            content[:at] + content[at : at + some] + content[at:],
            content + chance.randbytes(some),
        )
    )
    return damaged if damaged != content else content + b"\0"


def copied(whole: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(whole, to))


def test_the_whole_bundle_runs(whole, opened):
    assert opened(whole) == "ran"


def test_damaged_bytes_are_refused_by_name(whole, opened, tmp_path):
    ends = Counter()
    for chance in attempts(600):
        folder = copied(whole, tmp_path / "damaged")
        name = chance.choice([path.name for path in sorted(folder.iterdir()) if path.name != MANIFEST])
        (folder / name).write_bytes(damage_bytes((folder / name).read_bytes(), chance))
        said = opened(folder)
        assert said.startswith("refused: ") and name in said, (name, said)
        ends[name] += 1
    print(dict(ends))
    assert ends


def test_damaged_bytes_whose_hashes_were_written_anew_are_refused_or_run_and_never_crash(whole, opened, tmp_path):
    ends = Counter()
    for chance in attempts(700):
        folder = copied(whole, tmp_path / "forged")
        (name,) = [path.name for path in folder.iterdir() if path.suffix == ".onnx"]
        (folder / name).write_bytes(damage_bytes((folder / name).read_bytes(), chance))
        rehash(folder)
        said = opened(folder)
        assert said == "ran" or said.startswith("refused: "), said
        assert len(said) < 2000, said
        ends[said.partition(":")[0]] += 1
    print(dict(ends))
    assert ends


def a_folder(path):
    path.mkdir()


def a_full_folder(path):
    path.mkdir()
    (path / "something").touch()


def a_socket(path):
    os.chdir(path.parent)  # a socket's address is short
    socket.socket(socket.AF_UNIX).bind(path.name)


def a_link_to(target):
    def made(path):
        path.symlink_to(target)

    return made


def a_huge_hole(path):
    with path.open("wb") as file:
        file.truncate(1 << 42)


IN_PLACE = {
    "nothing": lambda path: None,
    "an empty file": lambda path: path.touch(),
    "a folder": a_folder,
    "a full folder": a_full_folder,
    "a pipe": lambda path: os.mkfifo(path),
    "a socket": a_socket,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": a_link_to("missing"),
    "a link to a device": a_link_to("/dev/zero"),
    "a link to a terminal": a_link_to("/dev/tty"),
    "a link to its folder": a_link_to("."),
    "a link out of the bundle": a_link_to("/etc/hostname"),
    "a hole of 4 TB": a_huge_hole,
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_what_stands_in_a_files_place_is_refused(whole, opened, tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in sorted(path.name for path in whole.iterdir()):
        folder = copied(whole, tmp_path / "damaged")
        (folder / name).unlink()
        IN_PLACE[kind](folder / name)
        said = opened(folder)
        assert said.startswith("refused: ") and name in said, (name, said)
