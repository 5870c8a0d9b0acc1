"""The attention operator, the affinity and the FLOP count, against plain float64 sums (families: test_families.py)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from accelaes_export.backbones.checkpoints import empty_transformer
from accelaes_export.errors import InputError
from accelaes_export.graph.focus_step import count_flops, example_inputs
from accelaes_export.graph.tensors import affinity_layers
from accelaes_export.plugins.sparse_query_attention.torch_operator import sparse_query_attention
from tests.families import FAMILIES
from tests.tiny_sd3 import SD3, tiny_config, tiny_step, tiny_transformer


@given(
    n=st.integers(1, 12),
    m=st.integers(0, 12),
    text=st.integers(0, 5),
    groups=st.sampled_from([1, 2, 4]),
    head_dim=st.sampled_from([4, 8]),
    scale=st.floats(0.05, 2.0),
    biased=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60)
def test_attention_over_two_segments_is_float64_attention_over_the_merged_keys(
    n, m, text, groups, head_dim, scale, biased, seed
):
    generator = torch.Generator().manual_seed(seed)
    heads, B = 4, 2

    def normal(h: int, tokens: int) -> torch.Tensor:
        return 3 * torch.randn(B, h, tokens, head_dim, generator=generator)

    q, k, v = normal(heads, n + text), normal(heads // groups, n + text), normal(heads // groups, n + text)
    k_bg, v_bg = normal(heads // groups, m), normal(heads // groups, m)
    bias = torch.randn(B, 1, n + text, n + text + m, generator=generator) if biased else None
    found = sparse_query_attention(q, k, v, k_bg, v_bg, scale, bias)
    for b in range(B):
        for h in range(heads):
            keys = torch.cat([k[b, h // groups], k_bg[b, h // groups]]).double()
            values = torch.cat([v[b, h // groups], v_bg[b, h // groups]]).double()
            scores = scale * (q[b, h].double() @ keys.T) + (0 if bias is None else bias[b, 0].double())
            weights = (scores - scores.amax(1, keepdim=True)).exp()
            expected = (weights / weights.sum(1, keepdim=True)) @ values
            # fp32 scores are exact to some 1e-7 of the largest, and that error goes through exp into the weights.
            tolerance = 1e-5 + 5e-7 * scores.abs().max().item() * values.abs().max().item()
            assert torch.allclose(found[b, h].double(), expected, rtol=0, atol=tolerance)


def test_the_affinity_of_a_text_whose_tokens_all_weigh_one_is_one():
    step = tiny_step(tiny_config(), range(3))
    inputs = example_inputs(step.contract, step.contract.tokens)
    inputs["token_weights"] = torch.ones_like(inputs["token_weights"])
    with torch.no_grad():
        affinity = step.run(inputs)["affinity"]
    assert torch.allclose(affinity, torch.ones_like(affinity), atol=1e-6)


def test_flops_grow_with_focus_tokens_and_dense_ones_are_the_models():
    config = tiny_config()
    model = tiny_transformer(config).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        step = tiny_step(config, [0], model)
        step.restore()
        contract = step.contract
        inputs = {name: t.to("meta") for name, t in example_inputs(contract, contract.tokens).items()}
        model(**{name: inputs[name] for name in ("hidden_states", "timestep", *contract.conditioning)})
    step.install()
    counts = [count_flops(step, n) for n in contract.buckets]
    assert counts == sorted(counts)
    assert counts[-1] == counter.get_total_flops()
    B, H, hd, M = 2, 4, 16, 9
    # One layer's scores and their weighted sums over the text, then the mean over the heads.
    affinity = 2 * B * contract.tokens * (H * M * hd + H * M + H)
    assert count_flops(step, contract.tokens, observed=True) - counts[-1] == affinity


def test_the_affinity_comes_from_every_kth_layer_that_reads_the_text_or_from_those_named():
    model = empty_transformer(SD3, tiny_config(num_layers=5))
    assert affinity_layers(SD3, model, 1) == (0, 1, 2, 3, 4)
    assert affinity_layers(SD3, model, 2) == (0, 2, 4)
    assert affinity_layers(SD3, model, 2, chosen=[4, 3, 3]) == (3, 4)
    with pytest.raises(InputError, match="block 5, which doesn't attend to the text; those that do are 0 to 4"):
        affinity_layers(SD3, model, 1, chosen=[5])
    dit = FAMILIES["dit"]
    textless = empty_transformer(dit.backbone, dit.full_config("plain"))
    assert affinity_layers(dit.backbone, textless, 1) == ()
    with pytest.raises(InputError, match="none of this model does"):
        affinity_layers(dit.backbone, textless, 1, chosen=[0])


def test_without_observed_tokens_there_is_no_affinity_and_nothing_else_changes():
    step = tiny_step(tiny_config())
    for n in step.contract.buckets:
        inputs = example_inputs(step.contract, n, seed=n)
        with torch.no_grad():
            observed = step.run(inputs)
            blind = step.run(inputs | {"observed_index": inputs["observed_index"][:, :0]})
        assert observed["affinity"].shape == (2, n) and blind["affinity"].shape == (2, 0)
        assert all(torch.equal(blind[name], value) for name, value in observed.items() if name != "affinity")


def test_a_graph_of_before_the_switch_observes_every_token():
    step = tiny_step(tiny_config())
    inputs = example_inputs(step.contract, 12)
    with torch.no_grad():
        expected = step.run(inputs)["affinity"]
        kept = tuple(spec for spec in step.contract.inputs if spec.name != "observed_index")
        step.contract = step.contract.model_copy(update={"inputs": kept})
        assert torch.equal(step.run(inputs)["affinity"], expected)
