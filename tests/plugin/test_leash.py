"""Nothing that was started on a leash outlives whoever started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accelaes_export.plugins import leash

# A process that starts another in a session of its own, as Inductor's compilers are, and notes both.
TREE = """
import os, subprocess, sys, time, signal
{deaf}
far = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(sys.argv[1], "w").write(f"{{os.getpid()}} {{far.pid}}")
time.sleep({seconds})
"""
STARTER = """
import sys, time
from accelaes_export.plugins import leash
leash.start([sys.executable, "-c", {tree!r}, sys.argv[1]])
time.sleep(600)
"""


def noted(path: Path) -> list[int]:
    return [int(pid) for pid in wait_for(lambda: path.is_file() and path.read_text()).split()]


def wait_for(ask, seconds: float = 20.0):
    last = time.monotonic() + seconds
    while not (found := ask()):
        assert time.monotonic() < last, "it took too long"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def gone(pids: list[int]) -> bool:
    return not any(map(alive, pids))


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("deaf", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_everything_ends_when_its_starter_is_killed(tmp_path: Path, kind: int, deaf: str) -> None:
    tree = TREE.format(deaf=deaf, seconds=600)
    starter = subprocess.Popen([sys.executable, "-c", STARTER.format(tree=tree), str(tmp_path / "pids")])
    pids = noted(tmp_path / "pids")
    assert not gone(pids)
    starter.send_signal(kind)
    starter.wait()
    wait_for(lambda: gone(pids))


def test_stopping_ends_what_was_started_far_below_and_returns_when_it_is_gone(tmp_path: Path) -> None:
    process = leash.start([sys.executable, "-c", TREE.format(deaf="", seconds=600), str(tmp_path / "pids")])
    pids = noted(tmp_path / "pids")
    leash.stop(process)
    assert gone(pids)
    assert process.returncode == -signal.SIGTERM
    leash.stop(process)  # once more is nothing


def test_what_a_finished_process_left_running_is_ended(tmp_path: Path) -> None:
    process = leash.start([sys.executable, "-c", TREE.format(deaf="", seconds=0), str(tmp_path / "pids")])
    assert process.wait(30) == 0
    assert gone(noted(tmp_path / "pids"))


@pytest.mark.parametrize(("program", "code"), [("pass", 0), ("raise SystemExit(7)", 7)])
def test_the_return_code_is_the_commands(program: str, code: int) -> None:
    assert leash.start([sys.executable, "-c", program]).wait(30) == code


def test_a_command_that_ended_by_a_signal_says_so() -> None:
    process = leash.start([sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"])
    assert process.wait(30) == -signal.SIGKILL


def test_a_command_that_is_not_there_says_so() -> None:
    process = leash.start([os.devnull + "/nothing"], stderr=subprocess.PIPE, text=True)
    assert "Not a directory" in process.communicate(timeout=30)[1]
    assert process.returncode == 127


def test_input_and_output_go_through() -> None:
    echo = [sys.executable, "-c", "print(input() * 2)"]
    process = leash.start(echo, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.communicate("ab\n", timeout=30)[0] == "abab\n"
