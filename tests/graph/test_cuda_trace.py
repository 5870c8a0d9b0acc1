"""Tracing for a GPU leaves B, n, m and M open, whichever of its attention paths torch takes there."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.attention import SDPBackend, sdpa_kernel

from accelaes_export.graph.export import TEXT_LIMIT, trace
from accelaes_export.plugins.sparse_query_attention.torch_operator import biased_attention, concatenated_attention
from tests.families import FAMILIES
from tests.graph.fake_cuda import allow_cuda_tensors, on_cuda
from tests.thorough import thorough_but

SHORT = ("num_layers", "num_single_layers")
MASKED = ("lumina", "pixart", "qwen-image")  # their attention to text has a bias


@pytest.fixture(scope="module", autouse=True)
def cuda_tensors(tmp_path_factory):
    allow_cuda_tensors(tmp_path_factory.mktemp("guard"))


def traced(family):
    """One block of the family's last variant (Lumina's: query heads share key heads), for a GPU, in fp16."""
    tiny = dataclasses.replace(FAMILIES[family])
    variant = list(tiny.variants)[-1]
    cut = {field: 1 for field in SHORT if field in tiny.full_config(variant)}
    tiny = dataclasses.replace(tiny, config={**tiny.config, **cut})
    step = tiny.step(tiny.model(variant).half(), variant, dtype="fp16")
    with on_cuda(step), sdpa_kernel(SDPBackend.MATH):
        return trace(step), step.contract


@pytest.mark.parametrize("family", thorough_but(["sd3", "lumina"], FAMILIES))
def test_every_family_is_traced_for_a_gpu_with_every_size_left_open(family):
    program, contract = traced(family)
    nodes = [node for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    assert {str(node.meta["val"].device) for node in nodes} == {"cuda:0"}
    made = {node.name: node.meta["val"] for node in nodes}
    for spec, name in zip(contract.inputs, program.graph_signature.user_inputs, strict=True):
        for letter, size in zip(spec.shape, made[name].shape, strict=True):
            assert isinstance(letter, str) == isinstance(size, torch.SymInt), (spec.name, letter, size)
    ranges = {str(found) for found in program.range_constraints.values()}
    assert {f"VR[1, {contract.tokens}]", f"VR[0, {contract.tokens}]", f"VR[1, {max(2, contract.rows)}]"} <= ranges
    if family in MASKED:
        spelt = {
            **torch.export.default_decompositions(),
            torch.ops.accelaes.sparse_query_attention.default: concatenated_attention,
        }
        with sdpa_kernel(SDPBackend.MATH):
            program.run_decompositions(spelt)  # as Inductor does; here a size would be fixed


@pytest.mark.parametrize("shared", [1, 4])
def test_keys_under_a_bias_are_filled_up_and_their_heads_repeated_without_asking_for_a_size(shared):
    attentions = []

    class Attend(torch.nn.Module):
        def forward(self, q, k, v, bias):
            return biased_attention(q, k, v, None, bias[:, None, None].expand(-1, -1, q.shape[2], -1))

    with on_cuda(module := Attend()):
        q = torch.empty(2, 4, 6, 16, device="cuda:0", dtype=torch.float16)
        k, v = (torch.empty(2, 4 // shared, 9, 16, device="cuda:0", dtype=torch.float16) for _ in range(2))
        bias = torch.empty(2, 9, device="cuda:0", dtype=torch.float16)
        M = torch.export.Dim("M", min=1, max=TEXT_LIMIT)
        program = torch.export.export(
            module, (q, k, v, bias), dynamic_shapes=(None, {2: M}, {2: M}, {1: M}), strict=False
        )
    attentions = [n for n in program.graph.nodes if "scaled_dot_product" in str(n.target) or "bmm" in str(n.target)]
    assert attentions
    sdpa = attentions[0]
    if "scaled_dot_product" in str(sdpa.target):
        keys = sdpa.args[1].meta["val"]
        assert keys.shape[1] == 4
        assert statically_known_true(keys.shape[2] % 8 == 0)
    assert "VR[1, 4096]" in {str(found) for found in program.range_constraints.values()}


@pytest.mark.parametrize(("M", "shared"), [(1, 1), (7, 2), (8, 4), (13, 4)])
def test_what_is_filled_up_changes_nothing(M, shared, monkeypatch):
    draw = torch.Generator().manual_seed(M)
    q = torch.randn(2, 4, 5, 16, generator=draw, dtype=torch.float64)
    k, v = (torch.randn(2, 4 // shared, M, 16, generator=draw, dtype=torch.float64) for _ in range(2))
    bias = -1e4 * (torch.rand(2, 1, 1, M, generator=draw, dtype=torch.float64) > 0.6).double().expand(-1, -1, 5, -1)
    bias[..., 0] = 0
    every = torch.arange(4) // shared
    scores = q @ k[:, every].transpose(-1, -2) * 16**-0.5 + bias
    wanted = torch.softmax(scores, -1) @ v[:, every]
    plain = biased_attention(q, k, v, None, bias)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    filled = biased_attention(q, k, v, None, bias)
    assert torch.allclose(plain, wanted, atol=1e-12)
    assert torch.allclose(filled, wanted, atol=1e-12)
