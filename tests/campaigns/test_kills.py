"""Builds killed at any moment: a bundle that was there is there, whole, and the next build goes through."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from accelaes_export.bundle.reading import open_bundle
from tests.campaigns.killed_build import build
from tests.campaigns.size import attempts

Context = multiprocessing.context.ForkServerContext

pytestmark = pytest.mark.campaign

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_HEAVY = ("diffusers.models.transformers", "onnxruntime", "accelerate")
SECONDS = 120.0  # that a tiny build may take on a busy machine


@pytest.fixture(scope="module")
def processes() -> Context:
    """Processes in which everything a build imports is there already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["accelaes_export.graph.export", "accelaes_export.building.builder", *_HEAVY])
    return context


def run(context: Context, folder: Path, seed: int, **options: object) -> int:
    """A build in its process, to its end or its death; the exit code."""
    delay = options.pop("delay", None)
    process = context.Process(target=build, args=(folder, seed), kwargs=options)
    process.start()
    if delay is not None:
        process.join(float(str(delay)))
        if process.is_alive():
            process.kill()
    process.join(SECONDS)
    assert not process.is_alive(), "the build hangs"
    assert process.exitcode is not None
    return process.exitcode


def key_of(folder: Path) -> str:
    """Of a bundle that is whole."""
    bundle = open_bundle(folder)
    bundle.check()
    return bundle.manifest.build_key


def killed(context: Context, folder: Path, operations: int, chance: random.Random) -> int:
    """One build, killed before some file operation or after some time."""
    if chance.random() < 0.3:
        shutil.rmtree(folder.parent / ".stages", ignore_errors=True)
    if chance.random() < 0.7:
        at = {"kill_before": chance.randrange(operations), "signal": int(chance.choice(SIGNALS))}
        return run(context, folder, chance.randrange(2), **at)
    return run(context, folder, chance.randrange(2), delay=chance.random() * 3)


def test_a_killed_build_leaves_the_bundle_before_or_the_new_one(processes: Context, tmp_path: Path) -> None:
    folder = tmp_path / "bundles" / "tiny"
    keys = []
    for seed in (0, 1):
        assert run(processes, folder, seed) == 0  # the first traces, and is slow
        keys.append(key_of(folder))
    assert keys[0] != keys[1]
    operations = int((folder.parent / "operations").read_text())
    ends: Counter[str] = Counter()
    for k, chance in enumerate(attempts(650)):
        there = chance.random() < 0.8
        if not there:
            shutil.rmtree(folder)
        code = killed(processes, folder, operations, chance)
        ends["finished" if code == 0 else f"killed by {-code}" if code < 0 else "interrupted"] += 1
        if there or folder.exists():
            assert key_of(folder) in keys
        if not there and not folder.exists():
            ends["nothing there"] += 1
        if k % 10 == 9 or not folder.exists():
            assert run(processes, folder, 0) == 0
            assert key_of(folder) == keys[0]
            left = {path.name for path in folder.parent.iterdir()}
            assert left == {"tiny", ".stages", "operations"}, left
            assert not [path for path in (folder.parent / ".stages").iterdir() if path.name.startswith(".")]
    print(dict(ends))
    time.sleep(0.5)
    survivors = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True, check=False).stdout
    assert not survivors.strip()
    assert sum(count for end, count in ends.items() if end.startswith("killed"))
