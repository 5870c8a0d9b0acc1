"""Many pictures: in threads the same as alone, and memory that doesn't grow."""

from __future__ import annotations

import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import torch

import accelaes_export as ax
from accelaes_export.bundle.reading import Bundle
from accelaes_export.memory import release
from accelaes_export.policies import AccelAes, Drift, StepCache
from tests.campaigns.size import WHOLE
from tests.shapes_pipeline import load_shapes
from tests.shapes_runs import difference, sample

pytestmark = pytest.mark.campaign

THREADS, PICTURES = (8, 40) if WHOLE else (4, 3)
FLAT = (50, 200) if WHOLE else (20, 50)
POLICIES = (AccelAes(), Drift(budget=6), StepCache(), Drift(budget=7, mask_weight=1.0, mask_step=2))
PROMPTS = ("an intricate red star on the left", "a glossy blue ring", "a small green circle, graded gray background")


def job(k: int) -> tuple[str, int]:
    """Prompt and seed of the k-th picture."""
    return PROMPTS[k % len(PROMPTS)], k


def copies(pipe: Any, count: int) -> list[Any]:
    """Pipelines that share the engine, with schedulers and tokenizers of their own."""
    made = []
    for _ in range(count):
        one = type(pipe)(**pipe.components)
        one.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        for name in ("tokenizer", "tokenizer_2"):
            setattr(one, name, copy.deepcopy(getattr(pipe, name)))
        one.set_progress_bar_config(disable=True)
        made.append(one)
    return made


def made_by(pipe: Any, thread: int, count: int, begin: threading.Barrier) -> dict[int, Any]:
    """The pictures of one thread, in an order of its own."""
    begin.wait()
    return {k: sample(pipe, job(k)[0], seed=k) for k in ((i + thread) % count for i in range(count))}


def test_pictures_made_in_threads_are_those_made_alone(shapes_bundle: Bundle) -> None:
    torch.set_num_threads(1)
    pipe = load_shapes()
    for policy in POLICIES:
        ax.accelerate(pipe, shapes_bundle, policy)
        count = PICTURES // len(POLICIES) or 1
        alone = {k: sample(pipe, job(k)[0], seed=k) for k in range(count)}
        begin = threading.Barrier(THREADS)
        rows = ((one, thread, count, begin) for thread, one in enumerate(copies(pipe, THREADS)))
        with ThreadPoolExecutor(THREADS) as pool:
            for made in pool.map(made_by, *zip(*rows, strict=True)):
                assert {k: difference(made[k], alone[k]) for k in made} == dict.fromkeys(alone, 0.0)


def test_memory_is_flat(shapes_bundle: Bundle) -> None:
    pipe, process = load_shapes(), psutil.Process()
    seen: dict[int, int] = {}
    for k in range(FLAT[1]):
        ax.accelerate(pipe, shapes_bundle, POLICIES[k % len(POLICIES)])
        sample(pipe, f"{job(k)[0]} number {k}", seed=k)
        if k + 1 in FLAT:
            gc.collect()
            release()
            seen[k + 1] = process.memory_info().rss
    first, last = seen.values()
    print(f"{first / 1e6:.1f} MB after {FLAT[0]} pictures, {last / 1e6:.1f} MB after {FLAT[1]}")
    assert last - first < 8e6
