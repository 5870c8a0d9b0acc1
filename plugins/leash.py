"""Processes that end with the one that started them, however that one ends, and with everything they started.

Between the two stands a small process, this file run as a script. It waits for either: when its child is done, what the
child left running is ended; when the starter is gone, SIGKILL included, or asks for it with SIGTERM, all of it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

GRACE = 3.0
"""Seconds for processes to end by themselves once they are asked to."""

_SET_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36  # prctl's


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """`command` on a leash; options are subprocess.Popen's. `terminate()` ends it and whatever it started.

    Its return code is the command's, -N where that ended by signal N.
    """
    held = [sys.executable, "-I", str(Path(__file__).resolve()), str(os.getpid()), *command]
    return subprocess.Popen(held, start_new_session=True, **options)


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process that `start` gave, and whatever it started; returns when they are gone."""
    if process.poll() is None:
        process.terminate()
        process.wait()


class _Ended(Exception):
    """Somebody asked for the end."""


def _hold(starter: int, command: Sequence[str]) -> int:
    """Run `command` for as long as the process `starter` lives; its return code."""
    libc = ctypes.CDLL(None)
    libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what the child leaves behind becomes ours, not init's

    def ended(*_: int | FrameType | None) -> None:
        raise _Ended

    for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(kind, ended)
    try:
        # SIGKILL to this process is SIGKILL to the child.
        child = subprocess.Popen(command, preexec_fn=lambda: libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL))
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    code = -signal.SIGTERM
    try:
        if _first_to_end(starter, child):
            code = child.returncode
    except _Ended:
        pass
    for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(kind, signal.SIG_IGN)
    _end_descendants()
    return code


def _first_to_end(starter: int, child: subprocess.Popen[bytes]) -> bool:
    """Wait; whether it was the child."""
    watched = []
    with contextlib.suppress(AttributeError, OSError):  # an old kernel, or a sandbox: then both are asked by turns
        watched = [os.pidfd_open(starter), os.pidfd_open(child.pid)]
    while child.poll() is None:
        if os.getppid() != starter:
            return False
        if watched:
            select.select(watched, [], [], 5.0)
        else:
            time.sleep(0.1)
    return True


def _end_descendants() -> None:
    """SIGTERM to everything below this process, and after a while SIGKILL, until there is nothing."""
    asked, last = False, time.monotonic() + GRACE
    while True:
        found = _descendants()
        for pid in found if not asked or time.monotonic() > last else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if asked else signal.SIGTERM)
        asked = True
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        if not _descendants():
            return
        time.sleep(0.02)


def _descendants() -> list[int]:
    """Processes below this one that haven't ended."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError, ValueError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    children.setdefault(int(parent), []).append(int(entry.name))
    found, queue = [], [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _leave(code: int) -> None:
    """End as the command did."""
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has nothing else
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    _leave(_hold(int(sys.argv[1]), sys.argv[2:]))
