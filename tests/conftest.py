"""Settings of the whole suite: property tests have no deadline, torch keeps to two threads."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from hypothesis import settings

# Before anything imports torch: more threads than this only fight each other on a CI machine.
os.environ.setdefault("OMP_NUM_THREADS", "2")

# Before anything imports triton, which decides then: the attention kernel runs through its interpreter, on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A job runner may start us with interrupts ignored; tests of Ctrl-C, and the processes they start, need them.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("accelaes", deadline=None, max_examples=50)
settings.load_profile("accelaes")


@pytest.fixture(scope="session")
def shapes_bundle(tmp_path_factory):
    """The shipped checkpoint built for ONNX Runtime, once a session."""
    from accelaes_export.builder import build

    return build(model="shapes", output=tmp_path_factory.mktemp("bundles") / "shapes")
