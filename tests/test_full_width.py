"""SD3-medium at its full width and 1024x1024, two blocks deep: the real build for RTX GPUs, without one."""

from __future__ import annotations

import pytest

import accelaes_export as ax
from accelaes_export import recipes
from accelaes_export.backbones.checkpoints import complete_config
from tests.tiny_sd3 import SD3, save_tiny_checkpoint

pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")


def test_two_blocks_of_sd3_medium_become_one_engine_for_two_targets_with_every_bucket(tmp_path):
    config = complete_config(SD3, recipes.load("sd3").architecture() | {"num_layers": 2})
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint", config)
    bundle = ax.build(checkpoint, model="sd3", backend="tensorrt-rtx", targets="sm86,sm120", output=tmp_path / "bundle")
    manifest = ax.open(bundle.path).manifest
    assert manifest.contract.buckets == (1024, 2048, 3072, 4096)
    assert manifest.contract.dtype == "fp16"
    assert manifest.backend.targets == ("sm86", "sm120")
    engine = bundle.path / manifest.backend.files[0]
    weights = 2 * 158_751_808  # bytes of the fp16 parameters
    assert weights < engine.stat().st_size < 1.5 * weights, "one copy of the weights serves four profiles, two targets"
