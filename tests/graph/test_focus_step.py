"""The focus step computes what diffusers computes: exactly at n = N, and as plain float64 attention says below it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelaes_export.graph.attention import sparse_query_attention
from accelaes_export.graph.focus_step import FocusStep, count_flops, example_inputs
from accelaes_export.patches import patchify, unpatchify
from tests.tiny_sd3 import SD3, tiny_config, tiny_contract, tiny_transformer

CONFIGS = {
    "qk_norm none": {},
    "qk_norm rms_norm": {"qk_norm": "rms_norm"},
    "dual attention, as in SD3.5": {"qk_norm": "rms_norm", "dual_attention_layers": [0, 1]},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("resolution", [(128, 128), (128, 96), (48, 144)])
def test_all_tokens_in_focus_is_the_diffusers_model_to_the_last_bit(changes, rows, resolution):
    config = tiny_config(**changes)
    model = tiny_transformer(config)
    contract, latents = tiny_contract(config, resolution=resolution, fractions=(0.5,), batch=2)
    inputs = example_inputs(contract, contract.tokens, B=rows)
    call = {name: inputs[name] for name in ("hidden_states", "timestep", *contract.conditioning)}
    with torch.no_grad():
        expected = model(**call, return_dict=False)[0]
        step = FocusStep(model, SD3, [0, 2])
        found = step.run(contract, inputs)["focus_prediction"]
        step.restore()
        again = model(**call, return_dict=False)[0]
    assert torch.equal(unpatchify(found, latents), expected)
    assert torch.equal(patchify(expected, latents), found)
    assert torch.equal(again, expected), "restore() gives the model its own processors back"


@given(
    n=st.integers(1, 12),
    m=st.integers(0, 12),
    text=st.integers(0, 5),
    groups=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([4, 8]),
    scale=st.floats(0.05, 2.0),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60)
def test_attention_over_two_segments_is_float64_attention_over_the_merged_keys(
    n, m, text, groups, head_dim, scale, seed
):
    generator = torch.Generator().manual_seed(seed)
    heads, B = 4, 2

    def normal(h: int, tokens: int) -> torch.Tensor:
        return 3 * torch.randn(B, h, tokens, head_dim, generator=generator)

    q, k, v = normal(heads, n + text), normal(heads // groups, n + text), normal(heads // groups, n + text)
    k_bg, v_bg = normal(heads // groups, m), normal(heads // groups, m)
    found = sparse_query_attention(q, k, v, k_bg, v_bg, scale)
    for b in range(B):
        for h in range(heads):
            keys = torch.cat([k[b, h // groups], k_bg[b, h // groups]]).double()
            values = torch.cat([v[b, h // groups], v_bg[b, h // groups]]).double()
            scores = scale * (q[b, h].double() @ keys.T)
            weights = (scores - scores.amax(1, keepdim=True)).exp()
            expected = (weights / weights.sum(1, keepdim=True)) @ values
            # fp32 scores are exact to some 1e-7 of the largest, and that error goes through exp into the weights.
            tolerance = 1e-5 + 5e-7 * scores.abs().max().item() * values.abs().max().item()
            assert torch.allclose(found[b, h].double(), expected, rtol=0, atol=tolerance)


class _Recorder:
    """A joint attention of its own: full attention over all tokens, its image keys and values written down."""

    def __init__(self, frozen=None):
        self.frozen = frozen  # (keep [B, N] bool, k, v): rows outside `keep` are taken from an earlier step
        self.image_kv = None
        self.affinity = None
        self.token_weights = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        def heads(x):
            return x.reshape(x.shape[0], x.shape[1], attn.heads, -1).permute(0, 2, 1, 3)

        q, k, v = (heads(p(hidden_states)) for p in (attn.to_q, attn.to_k, attn.to_v))
        if attn.norm_q is not None:
            q, k = attn.norm_q(q), attn.norm_k(k)
        if self.frozen is not None:
            keep, old_k, old_v = self.frozen
            k = torch.where(keep[:, None, :, None], k, old_k)
            v = torch.where(keep[:, None, :, None], v, old_v)
        self.image_kv = (k, v)
        n = q.shape[2]
        if encoder_hidden_states is not None:
            tq, tk, tv = (heads(p(encoder_hidden_states)) for p in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj))
            if attn.norm_added_q is not None:
                tq, tk = attn.norm_added_q(tq), attn.norm_added_k(tk)
            if self.token_weights is not None:
                weights = ((q.double() @ tk.double().mT) / q.shape[-1] ** 0.5).softmax(-1)
                self.affinity = torch.einsum("bhij,bj->bi", weights, self.token_weights.double()) / attn.heads
            q, k, v = torch.cat([q, tq], 2), torch.cat([k, tk], 2), torch.cat([v, tv], 2)
        weights = ((q.double() @ k.double().mT) / q.shape[-1] ** 0.5).softmax(-1)
        out = (weights @ v.double()).float().permute(0, 2, 1, 3).flatten(2)
        image = attn.to_out[0](out[:, :n])
        if encoder_hidden_states is None:
            return image
        return image, out[:, n:] if attn.context_pre_only else attn.to_add_out(out[:, n:])


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("n", [1, 12, 24, 36])
def test_a_sparse_step_is_the_full_model_with_the_backgrounds_keys_frozen(changes, n):
    """The reference computes all N tokens with its own attention and swaps the background's K/V for old ones.

    Focus rows of that model depend on focus rows, text and frozen keys alone, so they must agree.
    """
    config = tiny_config(**changes)
    model = tiny_transformer(config)
    contract, _ = tiny_contract(config, fractions=(0.5,))
    then, now = example_inputs(contract, contract.tokens, seed=1), example_inputs(contract, n, seed=2)
    sites = SD3.attentions(model)

    recorders = [_Recorder() for _ in sites]
    for site, recorder in zip(sites, recorders, strict=True):
        site.module.set_processor(recorder)
    keep = torch.zeros(2, contract.tokens, dtype=torch.bool).scatter_(1, now["focus_index"], True)
    conditioning = ("hidden_states", "timestep", *contract.conditioning)
    with torch.no_grad():
        model(**{name: then[name] for name in conditioning}, return_dict=False)
        for recorder, site in zip(recorders, sites, strict=True):
            recorder.frozen = (keep, *recorder.image_kv)
            recorder.token_weights = now["token_weights"] if site.joint else None
        sample = model(**{name: now[name] for name in conditioning}, return_dict=False)[0]

    focus = now["focus_index"]
    background = (~keep).nonzero()[:, 1].reshape(2, -1)
    slot = 0
    for recorder in recorders:
        _, old_k, old_v = recorder.frozen
        for old in (old_k, old_v):
            rows = background[:, None, :, None].expand(-1, old.shape[1], -1, old.shape[3])
            now[f"{contract.cache[slot].name}_bg"] = old.gather(2, rows)
            slot += 1
    with torch.no_grad():
        found = FocusStep(model, SD3, [0, 2]).run(contract, now)

    _, latents = tiny_contract(config)
    expected = patchify(sample, latents).gather(1, focus[..., None].expand(-1, -1, 16))
    assert torch.allclose(found["focus_prediction"], expected, atol=2e-5)
    joint = [r.affinity for r, site in zip(recorders, sites, strict=True) if site.joint]
    affinity = torch.stack([joint[0], joint[2]]).mean(0).gather(1, focus)
    assert torch.allclose(found["affinity"].double(), affinity, atol=1e-6)
    for k, recorder in enumerate(recorders):
        for half, tensor in enumerate(recorder.image_kv):
            rows = focus[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
            fresh = found[contract.cache[2 * k + half].name]
            assert torch.allclose(fresh, tensor.gather(2, rows), atol=2e-5)


def test_the_affinity_of_a_text_whose_tokens_all_weigh_one_is_one():
    config = tiny_config()
    contract, _ = tiny_contract(config)
    inputs = example_inputs(contract, contract.tokens)
    inputs["token_weights"] = torch.ones_like(inputs["token_weights"])
    with torch.no_grad():
        affinity = FocusStep(tiny_transformer(config), SD3, range(3)).run(contract, inputs)["affinity"]
    assert torch.allclose(affinity, torch.ones_like(affinity), atol=1e-6)


def test_flops_grow_with_focus_tokens_and_dense_ones_are_the_models():
    config = tiny_config()
    model = tiny_transformer(config).to("meta")
    contract, _ = tiny_contract(config)
    from torch.utils.flop_counter import FlopCounterMode

    inputs = {name: t.to("meta") for name, t in example_inputs(contract, contract.tokens).items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**{name: inputs[name] for name in ("hidden_states", "timestep", *contract.conditioning)})
    step = FocusStep(model, SD3, [])
    step._affinity_slots = frozenset({0})  # an affinity must be there; one layer's is counted apart below
    counts = [count_flops(step, contract, n) for n in contract.buckets]
    affinity = 2 * 2 * 4 * contract.tokens * 9 * 16
    assert counts == sorted(counts)
    assert counts[-1] - affinity == counter.get_total_flops()
