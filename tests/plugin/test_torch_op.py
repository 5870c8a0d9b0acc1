"""The torch operator on GPUs, by its kernel for them, run here through the interpreter."""

from __future__ import annotations

import pytest
import torch

import tests.plugin.interpreted  # noqa: F401  (before the kernel)
from accelaes_export.plugins.sparse_query_attention import torch_op
from accelaes_export.plugins.sparse_query_attention import torch_operator as attention
from tests.plugin.attention_reference import assert_close, case


def test_cuda_tensors_have_a_kernel_of_their_own_and_others_the_plain_one() -> None:
    name = "accelaes::sparse_query_attention"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta")  # the fake kernel


@pytest.mark.parametrize("bias", ["", "full"])
def test_on_gpus_half_precision_goes_through_the_kernel(monkeypatch: pytest.MonkeyPatch, bias: str) -> None:
    def never(*_: object) -> torch.Tensor:
        raise AssertionError("keys were concatenated")

    monkeypatch.setattr(attention, "concatenated_attention", never)
    drawn = case(H=4, group=2, bias=bias)
    found = attention.sparse_query_attention_on_cuda(*drawn)
    assert found.is_contiguous()
    assert_close(found, drawn)


def test_what_the_kernel_can_not_take_and_a_machine_without_triton_go_the_plain_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("the kernel was launched")

    monkeypatch.setattr(torch_op, "attention", never)
    drawn = case()
    single = [t.float() if isinstance(t, torch.Tensor) else t for t in drawn]
    torch.testing.assert_close(
        attention.sparse_query_attention_on_cuda(*single), torch.ops.accelaes.sparse_query_attention(*single)
    )
    monkeypatch.setattr(torch_op, "has_triton", lambda: False)
    assert torch_op.why_not(*drawn[:5]) == "triton isn't installed"
    assert_close(attention.sparse_query_attention_on_cuda(*drawn), drawn)
