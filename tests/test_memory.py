"""Memory is handed back, and what a mapped file holds stays readable while its pages are dropped."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest
import torch

from accelaes_export.memory import drop_weights, dropping_mapped, release

SIZE = 64 << 20


def resident_file_pages() -> int:
    """Bytes of this process's memory that are pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no RssFile in /proc/self/status")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", [b"weights", b"\xda not UTF-8 \xc2\x85"])
def test_pages_of_a_read_only_mapping_are_dropped_and_come_back_when_read(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:].count(b"\x07") == SIZE // 256
        full = resident_file_pages()
        with dropping_mapped([path]):
            time.sleep(0.3)
            assert resident_file_pages() < full - SIZE // 2
            assert mapped[SIZE - 256 :] == bytes(range(256))
        assert mapped[:].count(b"\x07") == SIZE // 256


def test_files_nobody_mapped_are_left_alone(tmp_path):
    with dropping_mapped([]), dropping_mapped([tmp_path / "nothing"]):
        release()


def test_dropped_weights_are_free_for_every_holder():
    model = torch.nn.Linear(8, 8)
    held = model.weight
    drop_weights(model)
    assert held.numel() == 0
