"""Every family's focus step computes what diffusers computes: exactly at n = N, and below it as plain sums say.

The references know nothing of focus steps. They run the unmodified diffusers model over all N tokens, watch its
calls of scaled_dot_product_attention (or its modules' outputs) and put old rows in the background's place.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from accelaes_export.backbones.base import AttentionSite, PartSite
from accelaes_export.backends.base import CompileRequest
from accelaes_export.backends.tensorrt import TensorRTBackend
from accelaes_export.backends.tensorrt.flavour import RTX
from accelaes_export.contract.patches import patchify, unpatchify
from accelaes_export.contract.tensors import BACKGROUND_INDEX, FOCUS_INDEX
from accelaes_export.graph.export import save_onnx, trace
from accelaes_export.graph.focus_step import count_flops, example_inputs
from tests.families import FAMILIES, cases
from tests.thorough import thorough_but

FORMS = [(family, variant, form) for family, variant in cases() for form in FAMILIES[family].backbone.forms]
# The pipelines' tests export every other family, and compare each bucket.
EXPORTED = [("sd3", "dual attention, as in SD3.5", "component")]


def reference(step, inputs):
    """The unmodified model's output for a step's inputs; the focus step is as before afterwards."""
    call = {name: inputs[name] for name in ("hidden_states", "timestep", *step.contract.conditioning)}
    step.restore()
    try:
        with torch.no_grad():
            return step.backbone.reference(step.model, call, step.latents)
    finally:
        step.install()


def rows_of(tensor, index, axis):
    """The rows `index` [B, k] of `tensor` along `axis`."""
    shape = [1] * tensor.ndim
    shape[0], shape[axis] = index.shape
    expanded = index.reshape(shape).expand(
        *(
            k if d in (0, axis) else s
            for d, (s, k) in enumerate(
                zip(
                    tensor.shape,
                    [*index.shape[:1], *tensor.shape[1:axis], index.shape[1], *tensor.shape[axis + 1 :]],
                    strict=True,
                )
            )
        )
    )
    return tensor.gather(axis, expanded)


@pytest.mark.parametrize(("family", "variant", "form"), FORMS)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_all_tokens_in_focus_is_the_diffusers_model_to_the_last_bit(family, variant, form, rows):
    tiny = FAMILIES[family]
    model = tiny.model(variant)
    for resolution in tiny.resolutions:
        step = tiny.step(model, variant, resolution=resolution, form=form, batch=3, fractions=(0.5,))
        inputs = example_inputs(step.contract, step.contract.tokens, B=rows)
        expected = reference(step, inputs)
        with torch.no_grad():
            found = step.run(inputs)["focus_prediction"]
        step.restore()
        C = step.latents.out_channels
        assert torch.equal(patchify(expected, step.latents), found)
        if not step.latents.packed:
            assert torch.equal(unpatchify(found, step.latents)[:, :C], expected[:, :C])


class Attentions:
    """Stands in for scaled_dot_product_attention and computes in float64.

    `seen` are the keys and values of every call. With `frozen`, the image rows outside `keep` of the calls that a
    cache exists for are those of an earlier run.
    """

    def __init__(self, step, text_first, frozen=None, keep=None):
        sites = [site for site in step.backbone.sites(step.model) if isinstance(site, AttentionSite)]
        self.cached = [site.cached for site in sites]
        self.N, self.text_first = step.contract.tokens, text_first
        self.frozen, self.keep, self.seen = frozen, keep, []

    def __call__(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        q, k, v = query, key, value
        call = len(self.seen)
        self.seen.append((k, v))
        if self.frozen is not None and self.cached[call]:
            text = k.shape[2] - self.N
            keep = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool)
            first = text if self.text_first else 0
            keep[:, first : first + self.N] = self.keep
            old_k, old_v = self.frozen[call]
            k = torch.where(keep[:, None, :, None], k, old_k)
            v = torch.where(keep[:, None, :, None], v, old_v)
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        scores = q.double() @ k.double().mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        return (scores.softmax(-1) @ v.double()).to(q.dtype)


@pytest.mark.parametrize(("family", "variant"), cases())
@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9])
def test_a_token_step_is_the_full_model_with_the_backgrounds_keys_frozen(family, variant, fraction, monkeypatch):
    tiny = FAMILIES[family]
    step = tiny.step(tiny.model(variant), variant)
    contract = step.contract
    N = contract.tokens
    n = max(1, round(fraction * N))
    then, now = example_inputs(contract, N, seed=1), example_inputs(contract, n, seed=2)
    focus = now[FOCUS_INDEX]
    keep = torch.zeros(focus.shape[0], N, dtype=torch.bool).scatter_(1, focus, True)
    background = (~keep).nonzero()[:, 1].reshape(focus.shape[0], -1)

    first = Attentions(step, tiny.text_first)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", first)
    reference(step, then)
    second = Attentions(step, tiny.text_first, first.seen, keep)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", second)
    expected = patchify(reference(step, now), step.latents)
    monkeypatch.undo()
    with torch.no_grad():
        earlier = step.run(then)
    everything = then[FOCUS_INDEX]
    assert torch.equal(everything, torch.arange(N).expand_as(everything))
    for entry in contract.cache:
        now[f"{entry.name}_bg"] = rows_of(earlier[entry.name], background, 2)
    with torch.no_grad():
        found = step.run(now)
    scale = expected.abs().max()
    assert (found["focus_prediction"] - rows_of(expected, focus, 1)).abs().max() <= 1e-4 * scale
    for (k, v), entry in zip(
        [pair for pair, cached in zip(second.seen, second.cached, strict=True) if cached],
        contract.cache[::2],
        strict=True,
    ):
        start = k.shape[2] - N if tiny.text_first else 0
        for letter, whole in (("k", k), ("v", v)):
            name = entry.name.replace(".k", f".{letter}")
            image = whole[:, :, start : start + N]
            image = image[:, :: image.shape[1] // entry.heads]  # models that repeat shared heads themselves
            assert torch.allclose(found[name], rows_of(image, focus, 2), atol=1e-4), name


@pytest.mark.parametrize(("family", "variant"), [c for c in cases() if "component" in FAMILIES[c[0]].backbone.forms])
@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9])
def test_a_component_step_is_the_full_model_with_the_backgrounds_part_outputs_frozen(family, variant, fraction):
    tiny = FAMILIES[family]
    step = tiny.step(tiny.model(variant), variant, form="component")
    contract = step.contract
    N = contract.tokens
    n = max(1, round(fraction * N))
    then, now = example_inputs(contract, N, seed=1), example_inputs(contract, n, seed=2)
    focus, background = now[FOCUS_INDEX], now[BACKGROUND_INDEX]
    keep = torch.zeros(focus.shape[0], N, dtype=torch.bool).scatter_(1, focus, True)[..., None]
    parts = [site for site in step.backbone.sites(step.model) if isinstance(site, PartSite) and site.name]
    old = {}

    def watched(name, text_first, freeze):
        def hook(_, __, out):
            start = out.shape[1] - N if text_first else 0
            if not freeze:
                old[name] = out[:, start:].clone()
                return None
            image = torch.where(keep, out[:, start:], old[name])
            return torch.cat([out[:, :start], image], dim=1)

        return hook

    samples = []
    for inputs, freeze in ((then, False), (now, True)):
        step.restore()
        hooks = [
            part.module.register_forward_hook(watched(f"cache.{part.layer}.{part.name}", part.text_first, freeze))
            for part in parts
        ]
        samples.append(patchify(reference(step, inputs), step.latents))
        for hook in hooks:
            hook.remove()
    for entry in contract.cache:
        now[f"{entry.name}_bg"] = rows_of(old[entry.name].unsqueeze(1), background, 2)
    with torch.no_grad():
        found = step.run(now)
    scale = samples[1].abs().max()
    for name, index in (("focus_prediction", focus), ("background_prediction", background)):
        assert (found[name] - rows_of(samples[1], index, 1)).abs().max() <= 1e-4 * scale, name


@pytest.mark.parametrize(("family", "variant", "form"), thorough_but(EXPORTED, FORMS))
def test_onnx_runtime_agrees_with_eager_for_every_focus_count_and_batch(family, variant, form, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    tiny = FAMILIES[family]
    step = tiny.step(tiny.model(variant), variant, form=form, batch=2)
    contract = step.contract
    path = save_onnx(trace(step), contract, tmp_path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    N = contract.tokens
    for k, n in enumerate((1, N // 3, N - 1, N)):
        for B in range(1, contract.rows + 1):
            M, observed = contract.text_tokens + k if contract.text_tokens else None, (k + B) % 2 == 0
            inputs = example_inputs(contract, n, B=B, M=M, seed=n, observed=observed)
            with torch.no_grad():
                expected = step.run(inputs)
            found = session.run(list(expected), {name: tensor.numpy() for name, tensor in inputs.items()})
            for (name, wanted), array in zip(expected.items(), found, strict=True):
                assert array.shape == wanted.shape
                if wanted.numel():
                    scale = max(1.0, wanted.abs().max().item())
                    assert np.abs(array - wanted.numpy()).max() <= 1e-4 * scale, (name, n, B)


@pytest.mark.parametrize(("family", "variant", "form"), FORMS)
def test_flops_of_a_dense_step_are_the_models_and_grow_with_focus_tokens(family, variant, form):
    tiny = FAMILIES[family]
    step = tiny.step(tiny.model(variant).to("meta"), variant, form=form)
    counts = [count_flops(step, n) for n in step.contract.buckets]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize(
    ("family", "form"),
    thorough_but(
        [],
        sorted({(family, form) for family, _, form in FORMS}),
    ),
)
def test_tensorrt_rtx_builds_every_bucket_into_one_engine(family, form, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx isn't installed")
    tiny = FAMILIES[family]
    variant = list(tiny.variants)[-1]
    step = tiny.step(tiny.model(variant).half(), variant, form=form, dtype="fp16", dynamic_text=False)
    path = save_onnx(trace(step), step.contract, tmp_path)
    (tmp_path / "engine").mkdir()
    request = CompileRequest(path, step.contract, ("sm120",), tmp_path / "engine")
    compiled = TensorRTBackend(RTX).compile(request, lambda phase, done: None)
    assert all((tmp_path / "engine" / name).stat().st_size > 1000 for name in compiled.files)
