"""Steps that leave a range of blocks out, against the unmodified diffusers model with that range's outputs replaced."""

from __future__ import annotations

import onnxruntime
import pytest
import torch

from accelaes_export.backends.base import CompileRequest
from accelaes_export.backends.tensorrt import TensorRTBackend
from accelaes_export.backends.tensorrt.flavour import RTX
from accelaes_export.contract.patches import patchify
from accelaes_export.errors import InputError
from accelaes_export.graph.export import save_onnx, trace
from accelaes_export.graph.focus_step import FocusStep, as_arguments, count_flops, example_inputs
from accelaes_export.graph.ranges import contract_without
from tests.families import FAMILIES, cases
from tests.left_out_blocks import Change, blocks_of
from tests.thorough import thorough_but

FORMS = [(family, variant, form) for family, variant in cases() for form in FAMILIES[family].backbone.forms]


def reference(model, step, inputs, hooked=()):
    call = {name: inputs[name] for name in ("hidden_states", "timestep", *step.contract.conditioning)}
    handles = [block.register_forward_hook(hook, with_kwargs=True) for block, hook in hooked]
    try:
        with torch.no_grad():
            return patchify(step.backbone.reference(model, call, step.latents), step.latents)
    finally:
        for handle in handles:
            handle.remove()


def steps_of(family, variant, form="token", **more):
    """The diffusers model, its focus step with two ranges, and a step without each; each of a model of its own."""
    tiny = FAMILIES[family]
    model = tiny.model(variant)
    halves = ((0, 1), (1, len(blocks_of(model))))
    full = tiny.step(tiny.model(variant), variant, form=form, ranges=halves, **more)
    without = [
        FocusStep(
            tiny.model(variant), tiny.backbone, contract_without(full.contract, blocks), full.latents, (0,)
        ).eval()
        for blocks in full.contract.ranges
    ]
    return model, full, without


@pytest.mark.parametrize(("family", "variant", "form"), FORMS)
def test_a_step_without_a_range_is_the_model_with_that_range_replaced_by_its_old_change(family, variant, form):
    model, full, without = steps_of(family, variant, form)
    then, now = (example_inputs(full.contract, full.contract.tokens, B=2, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        dense = full.run(then)
    assert torch.equal(dense["focus_prediction"], reference(model, full, then))
    for blocks, step in zip(full.contract.ranges, without, strict=True):
        change = Change(blocks_of(model)[blocks.first : blocks.last])
        reference(model, full, then, change.hooks("watch"))
        expected = reference(model, full, now, change.hooks("replay"))
        changes = {spec.name: dense[spec.name] for spec in blocks.changes}
        inputs = {spec.name: {**now, **changes}[spec.name] for spec in step.contract.inputs}
        with torch.no_grad():
            found = step.run(inputs)["focus_prediction"]
        assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max())
        assert not torch.allclose(expected, reference(model, full, now), atol=1e-3 * expected.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_range_that_has_just_been_computed_may_be_left_out_at_no_loss(family):
    _, full, without = steps_of(family, next(iter(FAMILIES[family].variants)))
    inputs = example_inputs(full.contract, full.contract.tokens, seed=3)
    with torch.no_grad():
        dense = full.run(inputs)
        for step in without:
            again = step.run({spec.name: {**inputs, **dense}[spec.name] for spec in step.contract.inputs})
            scale = dense["focus_prediction"].abs().max()
            assert (again["focus_prediction"] - dense["focus_prediction"]).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_without_a_range_has_none_of_its_weights_and_does_less_work(family):
    _, full, without = steps_of(family, next(iter(FAMILIES[family].variants)))
    N = full.contract.tokens
    for step in without:
        assert sum(p.numel() for p in step.parameters()) < sum(p.numel() for p in full.parameters())
        assert count_flops(step, N) < count_flops(full, N)
    whole = sum(p.numel() for p in full.model.parameters())
    assert sum(p.numel() for p in without[0].model.parameters()) < whole
    without[0].restore()
    assert sum(p.numel() for p in without[0].model.parameters()) == whole


@pytest.mark.parametrize("family", thorough_but(["sd3"], FAMILIES))
def test_onnx_runtime_computes_a_step_without_a_range(family, tmp_path):
    _, _, without = steps_of(family, list(FAMILIES[family].variants)[-1])
    for k, step in enumerate(without):
        (tmp_path / str(k)).mkdir()
        path = save_onnx(trace(step), step.contract, tmp_path / str(k))
        session = onnxruntime.InferenceSession(str(path))
        for rows in (1, 2):
            inputs = example_inputs(step.contract, step.contract.tokens, B=rows)
            expected = step(as_arguments(step.contract, inputs))[0].detach().numpy()
            found = session.run(["focus_prediction"], {name: tensor.numpy() for name, tensor in inputs.items()})[0]
            assert abs(found - expected).max() <= 1e-4 * abs(expected).max()


@pytest.mark.thorough
def test_tensorrt_rtx_builds_a_step_without_a_range(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx isn't installed")
    _, _, (step, _) = steps_of("sd3", "qk_norm none", dynamic_text=False)
    path = save_onnx(trace(step), step.contract, tmp_path)
    (tmp_path / "engine").mkdir()
    compiled = TensorRTBackend(RTX).compile(
        CompileRequest(path, step.contract, ("sm120",), tmp_path / "engine"), lambda phase, done: None
    )
    assert all((tmp_path / "engine" / name).stat().st_size > 1000 for name in compiled.files)


@pytest.mark.parametrize("given", [(1, 1), (2, 1), (-1, 1), (0, 9), (0, 2)])
def test_a_range_the_model_does_not_have_is_refused_with_what_it_has(given):
    tiny = FAMILIES["sd3"]
    with pytest.raises(InputError, match=r"a model of 2 blocks; give FIRST:LAST with 0 <= FIRST < LAST <= 2"):
        tiny.step(tiny.model("qk_norm none"), "qk_norm none", ranges=(given,))
