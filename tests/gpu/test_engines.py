"""Engines on a GPU compute what the models do there, from graphs as from plain calls."""

from __future__ import annotations

import json

import pytest
import torch

from accelaes_export.building.verification import verify
from accelaes_export.bundle.reading import open_bundle
from benchmarks.gpu.checks import Checks
from tests.families import FAMILIES
from tests.gpu.bundles import TWO_BLOCKS, small, two_blocks

FORMS = [(family, form) for family in FAMILIES for form in FAMILIES[family].backbone.forms]


def right(bundle, device) -> None:
    """Parity of every bucket on the device; on a GPU also replays, host waits and memory."""
    kept: list[str] = []
    Checks(bundle, kept.append).carry_out()
    facts = json.loads(kept[-1])
    assert facts["finished"] and facts["wrong"] == []
    assert {one["device"] for one in facts["parity"]} == {str(device)}


@pytest.mark.parametrize(("family", "form"), FORMS)
def test_every_family_in_both_forms(family, form, tmp_path, device):
    right(small(tmp_path, family, device, form=form), device)


@pytest.mark.parametrize("family", ["sd3", "flux", "qwen-image"])
def test_steps_that_leave_blocks_out(family, tmp_path, device):
    bundle = small(tmp_path, family, device, block_ranges="0:1,1:2")
    assert sum("left out" in one.reference for one in bundle.manifest.geometry.parity) == 2
    right(bundle, device)


@pytest.mark.parametrize("name", TWO_BLOCKS)
def test_full_width_and_size(name, tmp_path, cuda):
    right(two_blocks(tmp_path, name, cuda), cuda)


def test_a_package_can_call_the_plugins_kernel(tmp_path, cuda):
    bundle = small(tmp_path, "sd3", cuda, attention="plugin")
    right(bundle, cuda)
    session = bundle.session()
    from accelaes_export.measure.profiling.buckets import step_tensors

    tensors = step_tensors(session, session.contract.buckets[0])
    with torch.profiler.profile() as seen:
        session.run(tensors.inputs, tensors.outputs)
        torch.cuda.synchronize()
    called = [event for event in seen.key_averages() if event.key == "accelaes::sparse_query_attention"]
    assert called and called[0].count == len(session.contract.cache) // 2


def test_onnxruntime_computes_the_same_on_a_gpu(tmp_path, cuda):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime-gpu isn't installed")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has no CUDA here; pip install onnxruntime-gpu")
    from accelaes_export.building.builder import build

    bundle = build(model="shapes", backend="onnxruntime", targets="cuda", dtype="fp16", output=tmp_path / "shapes")
    report = verify(open_bundle(bundle.path))
    assert report.passed and {one.device for one in report.parity} == {str(cuda)}
