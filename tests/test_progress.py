"""Stages report time and peak memory; in a log they are plain lines, on a terminal they leave the same ones."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from accelaes_export.cli.peak_memory import PeakMemory
from accelaes_export.cli.progress import TerminalProgress, readable_size
from accelaes_export.progress import Silent

MB = 1_000_000


def lines(output: io.StringIO) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", output.getvalue()).splitlines()


def test_peak_memory_sees_an_allocation_that_is_gone_at_the_end() -> None:
    with PeakMemory() as idle:
        pass
    with PeakMemory() as busy:
        block = bytearray(b"x") * (300 * MB)
        time.sleep(0.3)  # long enough for a sample, where an earlier test left a higher mark
        del block
    assert busy.bytes - idle.bytes > 250 * MB


def test_an_earlier_peak_is_not_counted_again() -> None:
    block = bytearray(b"x") * (300 * MB)
    del block
    with PeakMemory() as before:
        pass
    with PeakMemory() as after:
        pass
    assert after.bytes < before.bytes + 50 * MB


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stage_leaves_one_line_with_time_and_memory(terminal: bool) -> None:
    output = io.StringIO()
    progress = TerminalProgress(Console(file=output, force_terminal=terminal, width=100))
    with progress.stage("compile sm120", "4 profiles") as stage:
        stage.update(None, "tactics")
        stage.update(0.5)
    left = [line for line in lines(output) if "peak" in line]
    assert len(left) == 1
    assert re.search(r"^compile sm120 +\d+\.\d s  peak [\d.]+ [MG]B  4 profiles$", left[0])


def test_a_log_gets_plain_lines_only() -> None:
    output = io.StringIO()
    progress = TerminalProgress(Console(file=output, width=40))
    progress.note("a long note " * 20)
    with progress.stage("load") as stage:
        stage.update(0.1, "reading")
    assert "\x1b" not in output.getvalue()
    assert len(output.getvalue().splitlines()) == 2


def test_a_stage_that_fails_says_so_and_passes_the_error_on() -> None:
    output = io.StringIO()
    with pytest.raises(ZeroDivisionError), TerminalProgress(Console(file=output)).stage("trace"):
        raise ZeroDivisionError
    assert "failed after" in output.getvalue()


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Silent()
    progress.estimate(1, 2, 3, 4)
    progress.reused("load")
    progress.note("x")
    with progress.stage("load") as stage:
        stage.update(1.0, "done")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("size", "text"), [(0, "0.0 kB"), (768, "0.8 kB"), (4_560_000, "4.6 MB"), (7.5e9, "7.50 GB")])
def test_sizes_are_readable(size: float, text: str) -> None:
    assert readable_size(int(size)) == text
