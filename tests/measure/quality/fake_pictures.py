"""Pictures without a model: grey noise that depends on prompt and seed, and a little on the policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image

from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.manifest import Source
from accelaes_export.policies.plan import StepKind
from accelaes_export.runtime.generate import GenerationResult
from accelaes_export.runtime.report import RunReport, StepRecord
from tests.fake_bundle import write_fake_bundle

SECONDS_OF_TOKEN = 0.001
Call = tuple[str, str, int]  # policy, prompt, seed


class Pictures:
    """Stands for `generate`: remembers every call, and fails when it is told to.

    Attributes:
        calls: in order.
        fail: called before each picture with how many there were.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.fail: Callable[[int], None] = lambda made: None
        self.frames = 1

    def __call__(self, bundle: Bundle, prompt: str, *, policy: Any, steps: int, seed: int, **_: Any) -> Any:
        self.fail(len(self.calls))
        self.calls.append((policy.name, prompt, seed))
        plan = policy.plan(steps, (0.25, 0.5))
        kinds = {
            "D": (StepKind.DENSE, 16),
            "b": (StepKind.SPARSE, 8),
            "a": (StepKind.SPARSE, 4),
            ".": (StepKind.SKIP, 0),
        }
        records = [
            StepRecord(i, kinds[s][0], kinds[s][1], SECONDS_OF_TOKEN * kinds[s][1]) for i, s in enumerate(str(plan))
        ]
        frames = tuple(picture(policy.name, prompt, seed, frame) for frame in range(self.frames))
        return GenerationResult(frames, RunReport(plan, 16, records), "the rest" if "long" in prompt else "")


def picture(policy: str, prompt: str, seed: int, frame: int = 0) -> Image.Image:
    """16x16 noise of prompt, seed and frame; other policies than dense change one pixel in four a little."""
    noise = np.random.default_rng([crc32(prompt.encode()), seed, frame]).integers(20, 230, (16, 16, 3))
    if policy != "dense":
        generator = np.random.default_rng([crc32(policy.encode()), crc32(prompt.encode()), seed])
        noise = noise + generator.integers(-9, 9, noise.shape) * (generator.random(noise.shape) < 0.25)
    return Image.fromarray(noise.astype(np.uint8))


def fake_world(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Bundle, Pictures]:
    """A bundle whose pictures are `Pictures`; nothing of it is ever loaded."""
    pictures = Pictures()
    source = Source(kind="hub", location="org/model", weights_sha256="0" * 64)
    bundle = write_fake_bundle(folder, **{"source": source, **changes})
    monkeypatch.setattr(Bundle, "session", lambda self: SimpleNamespace(device=torch.device("cpu")))
    monkeypatch.setattr("accelaes_export.runtime.generate.generate", pictures)
    monkeypatch.setattr("accelaes_export.runtime.generate.load_pipeline", lambda bundle, checkpoint: "pipeline")
    monkeypatch.setattr("accelaes_export.measure.profiling.machine._SECONDS_OBSERVED", 0.01)
    return bundle, pictures
