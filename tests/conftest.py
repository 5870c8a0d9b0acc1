"""Settings of the whole suite: property tests have no deadline, torch keeps to two threads."""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
import threading

import pytest
from hypothesis import settings

from tests.native.building import library, native  # noqa: F401

# Before anything imports torch: more threads than this only fight each other on a CI machine.
os.environ.setdefault("OMP_NUM_THREADS", "2")

# Which bundles this user built is remembered there; those of tests are nobody's business.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="accelaes-tests-state-")

# Before anything imports triton, which decides then: the attention kernel runs through its interpreter, on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A job runner may start us with interrupts ignored; tests of Ctrl-C, and the processes they start, need them.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("tests.runtime.any_pipeline")

# Their tests share little, and some take half a minute: every worker takes of them. Other files stay with one worker,
# which makes their fixtures once.
SPREAD = ("test_families.py", "test_full_width.py", "test_ranges.py", "test_streaming.py", "test_tensorrt_plugin.py")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name not in SPREAD and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


settings.register_profile("accelaes", deadline=None, max_examples=50)
settings.load_profile("accelaes")


@pytest.fixture(scope="session")
def shapes_bundle(tmp_path_factory):
    """The shipped checkpoint built for ONNX Runtime, once for all workers: the first to want it builds."""
    return _built_once(tmp_path_factory, "shapes")


@pytest.fixture(scope="session")
def complete_bundle(tmp_path_factory):
    """The same with all of the pipeline in it."""
    return _built_once(tmp_path_factory, "complete", components="all")


def _built_once(tmp_path_factory, name, **options):
    from accelaes_export.building.builder import build

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / "shapes.lock").open("w") as lock:  # one for both, which share stages
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build(model="shapes", output=shared / name, **options)  # finds what is there, and whole, already
