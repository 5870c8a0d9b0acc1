"""The kernel launched on torch tensors, compiled when it is first used."""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import TYPE_CHECKING

from accelaes_export.plugins.sparse_query_attention.tiles import HEAD_DIMS, Tile, choice, nearest_architecture, parts

if TYPE_CHECKING:
    import torch

_OFFSETS = 2**31  # elements within one head that 32-bit offsets reach


def why_not(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_bg: torch.Tensor,
    v_bg: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> str:
    """Why the kernel can't take these tensors on their device, or "" where it can."""
    import torch

    if not has_triton():
        return "triton isn't installed"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes fp16 and bf16, not {q.dtype}"
    if q.is_cuda and nearest_architecture(*torch.cuda.get_device_capability(q.device)) is None:
        return "the GPU is older than sm80"
    if q.shape[3] not in HEAD_DIMS:
        return f"it takes head sizes from 32 to 256 in steps of 8, not {q.shape[3]}"
    for tensor in (q, k, v, k_bg, v_bg):
        if tensor.dtype != q.dtype or tensor.device != q.device:
            return "its tensors have one dtype and one device"
        if tensor.shape[2] and (tensor.stride(3) != 1 or tensor.shape[2] * tensor.stride(2) >= _OFFSETS):
            return "a head's rows must be contiguous and within 2**31 elements"
    if bias is not None and (bias.dtype != q.dtype or bias.shape[1] != 1 or bias.stride(3) != 1):
        return "the bias is [B, 1, nq, nk + m] of the same dtype, its columns side by side"
    return ""


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_bg: torch.Tensor,
    v_bg: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
    *,
    tile: Tile | None = None,
) -> torch.Tensor:
    """softmax(scale · q · [k; k_bg]ᵀ + bias) · [v; v_bg]; a row whose every score is -inf gives zeros.

    Args:
        q: [B, H, nq, hd], fp16 or bf16, on a CUDA device (or the CPU, where Triton interprets).
        k, v: [B, Hkv, nk, hd]; H is a multiple of Hkv.
        k_bg, v_bg: [B, Hkv, m, hd]; m may be 0.
        bias: [1 or B, 1, 1 or nq, nk + m], or None.
        tile: instead of the one the table has for this GPU.

    Returns:
        [B, H, nq, hd], contiguous.

    Raises ValueError for tensors that `why_not` has a reason against, or whose shapes don't fit together.
    """
    import torch
    import triton

    from accelaes_export.plugins.sparse_query_attention.kernel import attention as kernel

    _check_shapes(q, k, v, k_bg, v_bg, bias)
    reason = why_not(q, k, v, k_bg, v_bg, bias)
    if reason:
        raise ValueError(f"The attention kernel can't take this: {reason}.")
    B, H, nq, hd = q.shape
    if tile is None:
        architecture = nearest_architecture(*torch.cuda.get_device_capability(q.device)) if q.is_cuda else None
        tile = choice(architecture or "sm80", hd).best
    out = torch.empty((B, H, nq, hd), dtype=q.dtype, device=q.device)
    if not out.numel():
        return out
    if tile.descriptors:
        triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=q.device))
    width, rest = parts(hd)
    added = q if bias is None else bias
    kernel[(-(-nq // tile.queries), H, B)](
        *(q, k, v, k_bg, v_bg, added, out, scale, nq, k.shape[2], k_bg.shape[2], H // k.shape[1]),
        *(stride for tensor in (q, k, v, k_bg, v_bg, out) for stride in tensor.stride()[:2]),
        *((0, 0) if bias is None else (_stride(bias, 0), _stride(bias, 2))),
        *(tensor.stride(2) for tensor in (q, k, v, k_bg, v_bg, out)),
        HD=hd,
        WIDTH=width,
        REST=rest,
        BLOCK_M=tile.queries,
        BLOCK_N=tile.keys,
        BIASED=bias is not None,
        DESCRIPTORS=tile.descriptors,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


@cache
def has_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def _stride(bias: torch.Tensor, axis: int) -> int:
    """A broadcast axis stands still."""
    return 0 if bias.shape[axis] == 1 else bias.stride(axis)


def _check_shapes(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_bg: torch.Tensor,
    v_bg: torch.Tensor,
    bias: torch.Tensor | None,
) -> None:
    B, H, nq, hd = q.shape
    fresh, background = (B, k.shape[1], k.shape[2], hd), (B, k.shape[1], k_bg.shape[2], hd)
    shapes = [tuple(tensor.shape) for tensor in (k, v, k_bg, v_bg)]
    if shapes != [fresh, fresh, background, background] or H % k.shape[1]:
        raise ValueError(f"Queries {tuple(q.shape)} don't fit keys and values {', '.join(map(str, shapes))}.")
    if bias is not None:
        keys = k.shape[2] + k_bg.shape[2]
        allowed = [(b, 1, n, keys) for b in (1, B) for n in (1, nq)]
        if tuple(bias.shape) not in allowed:
            raise ValueError(f"The bias is {tuple(bias.shape)}; it must be [1 or {B}, 1, 1 or {nq}, {keys}].")
