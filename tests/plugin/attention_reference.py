"""Attention over merged keys in float64, written out, and random tensors for it."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Case(NamedTuple):
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    k_bg: torch.Tensor
    v_bg: torch.Tensor
    scale: float
    bias: torch.Tensor | None = None


def attention(case: Case) -> torch.Tensor:
    """[B, H, nq, hd] in float64, one head at a time; a row of nothing but -inf gives zeros."""
    q = case.q.double()
    keys, values = torch.cat([case.k, case.k_bg], 2).double(), torch.cat([case.v, case.v_bg], 2).double()
    group = q.shape[1] // keys.shape[1]
    out = torch.empty_like(q)
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            scores = q[row, head] @ keys[row, head // group].T * case.scale
            if case.bias is not None:
                scores = scores + case.bias.double().expand(q.shape[0], -1, q.shape[2], -1)[row, 0]
            weights = torch.softmax(scores, -1)
            weights[(scores == -torch.inf).all(-1)] = 0
            out[row, head] = weights @ values[row, head // group]
    return out


def case(
    *,
    B: int = 1,
    H: int = 2,
    group: int = 1,
    nq: int = 9,
    nk: int = 12,
    m: int = 7,
    hd: int = 32,
    dtype: torch.dtype = torch.float16,
    bias: str = "",
    seed: int = 0,
) -> Case:
    """Normal numbers. `bias`: "" for none, "full" [B, 1, nq, nk + m], "keys" [1, 1, 1, nk + m], "masks" with -inf."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    kv = H // group
    q = normal(B, H, nq, hd)
    segments = (normal(B, kv, nk, hd), normal(B, kv, nk, hd), normal(B, kv, m, hd), normal(B, kv, m, hd))
    added = None
    if bias == "full":
        added = normal(B, 1, nq, nk + m)
    elif bias == "keys":
        added = normal(1, 1, 1, nk + m)
    elif bias == "masks":
        added = torch.where(torch.rand(B, 1, nq, nk + m, generator=draw) < 0.5, -torch.inf, 0).to(dtype)
    return Case(q, *segments, hd**-0.5, added)


def assert_close(found: torch.Tensor, case: Case) -> None:
    """Within the rounding of the dtype: of the weights (once), of the result (once)."""
    wanted = attention(case)
    unit = torch.finfo(case.q.dtype).eps
    largest = torch.cat([case.v, case.v_bg], 2).double().abs()
    limit = float(largest[largest.isfinite()].max()) if largest.isfinite().any() else 1.0
    torch.testing.assert_close(found.double(), wanted, atol=2 * unit * limit, rtol=unit, equal_nan=True)
