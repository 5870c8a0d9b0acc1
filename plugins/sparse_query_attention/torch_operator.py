"""Sparse-query / global-KV attention as one torch operator, `accelaes::sparse_query_attention`.

It is softmax(scale · q · [k; k_bg]ᵀ + bias) · [v; v_bg]: every query attends to the fresh keys of this step and to the
background's cached ones. The order of keys doesn't matter to softmax, so nothing is ever scattered back in place.
Exporters see one opaque node; eager torch and AOTInductor packages run concatenation and SDPA, and on GPUs the kernel
where Triton is there. Importing this registers the operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from accelaes_export.plugins.sparse_query_attention import torch_op

_ALIGNED = 8  # numbers of 16 bits in 16 bytes
_HIDDEN = -1e4  # exp() of it is 0, and fp16 holds it


@torch.library.custom_op("accelaes::sparse_query_attention", mutates_args=())
def sparse_query_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_bg: torch.Tensor,
    v_bg: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of q over the two key segments [k; k_bg].

    Args:
        q: [B, H, nq, hd] queries: focus tokens and, in joint models, text.
        k, v: [B, Hkv, nk, hd] keys and values computed in this step; H is a multiple of Hkv.
        k_bg, v_bg: [B, Hkv, m, hd] the background's cached keys and values; m may be 0.
        scale: factor on the scores, hd ** -0.5 in the models as published.
        bias: [B, 1, nq, nk + m] added to the scores, or None.

    Returns:
        [B, H, nq, hd]
    """
    # SDPA may return a transposed view; exporters and the fake kernel count on a plain layout.
    return concatenated_attention(q, k, v, k_bg, v_bg, scale, bias).contiguous()


def concatenated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_bg: torch.Tensor,
    v_bg: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`sparse_query_attention` in operators that every compiler knows; may be a transposed view."""
    m = k_bg.shape[2]  # a symbol while a program of any m is traced
    if not isinstance(m, int) or m:
        k, v = torch.cat([k, k_bg], dim=2), torch.cat([v, v_bg], dim=2)
    return biased_attention(q, k, v, scale, bias)


def biased_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None, bias: torch.Tensor | None
) -> torch.Tensor:
    """torch's attention [B, H, nq, hd] with a bias [B, 1, nq, nk] on the scores, or None.

    On GPUs torch's kernels for a bias want a row of it to begin at a multiple of 16 bytes and as many key heads as
    query heads; else they copy the bias, or take a path that computes all scores. Both decide by sizes that a traced
    program is to leave open, so keys are filled up and heads repeated here, where no size is asked for.
    """
    shared = q.shape[1] // k.shape[1]
    if bias is not None and q.is_cuda:
        missing = _ALIGNED * ((k.shape[2] + _ALIGNED - 1) // _ALIGNED) - k.shape[2]
        if shared > 1:  # picked, not expanded: a new tensor of plain strides, of which no size has to be known
            heads = torch.arange(q.shape[1], device=k.device) // shared
            k, v = k.index_select(1, heads), v.index_select(1, heads)
        k, v = (torch.nn.functional.pad(tensor.contiguous(), (0, 0, 0, missing)) for tensor in (k, v))
        bias = torch.nn.functional.pad(bias, (0, missing), value=_HIDDEN)
        shared = 1
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=shared > 1)


@sparse_query_attention.register_kernel("cuda")
def sparse_query_attention_on_cuda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_bg: torch.Tensor,
    v_bg: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same through the plugin's kernel, which concatenates nothing; as on the CPU where it can't be used."""
    if torch_op.why_not(q, k, v, k_bg, v_bg, bias):
        return concatenated_attention(q, k, v, k_bg, v_bg, scale, bias).contiguous()
    return torch_op.attention(q, k, v, k_bg, v_bg, scale, bias)


@sparse_query_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_bg: torch.Tensor,
    v_bg: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@register_flop_formula(torch.ops.accelaes.sparse_query_attention)
def sparse_query_attention_flops(
    q: Sequence[int],
    k: Sequence[int],
    v: Sequence[int],
    k_bg: Sequence[int],
    v_bg: Sequence[int],
    *args: Any,
    **kwargs: Any,
) -> int:
    """From shapes: 2 · B · H · nq · (nk + m) · hd for q·kᵀ and the same again for the weighted sum of values."""
    B, H, nq, hd = q
    return 4 * B * H * nq * (k[2] + k_bg[2]) * hd
