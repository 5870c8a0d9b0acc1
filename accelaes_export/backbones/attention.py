"""Steps that attention processors of several families share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from accelaes_export.backbones.base import Focus


_HIDDEN = -1e4


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, tokens, H·hd] to [B, H, tokens, hd]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """`x` through a norm, or as it is where the model has none."""
    normed: torch.Tensor = x if norm is None else norm(x)
    return normed


def projected(attn: Any, heads: torch.Tensor) -> torch.Tensor:
    """[B, H, n, hd] of all heads through the module's output projection: [B, n, D]."""
    projected: torch.Tensor = attn.to_out[0](heads.transpose(1, 2).flatten(2))
    dropped: torch.Tensor = attn.to_out[1](projected)  # dropout, as diffusers has it
    return dropped


def text_attention(
    focus: Focus,
    layer: int,
    q: torch.Tensor,
    text_k: torch.Tensor,
    text_v: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of image tokens to the text, which the focus observes: [B, H, n, hd].

    Args:
        q: [B, H, n, hd]; text_k, text_v: [B, Hkv, M, hd].
        mask: [B, M], added to the scores. Numbers, not booleans, which would bloat TensorRT-RTX's engines.
    """
    from accelaes_export.plugins.sparse_query_attention.torch_operator import biased_attention

    focus.observe(layer, q, text_k, mask)
    # A row for every query: ONNX Runtime's Attention doesn't broadcast that axis.
    bias = None if mask is None else mask[:, None, None, :].expand(-1, -1, q.shape[2], -1)
    return biased_attention(q, text_k, text_v, None, bias)


def text_bias(mask: torch.Tensor) -> torch.Tensor:
    """What a mask of ones and zeros [B, M] adds to scores: exp() of the padding's is 0, and fp16 holds it."""
    return _HIDDEN * (1 - mask)


def rotated_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, H, t, hd] with neighbouring numbers turned in pairs by the angles of [B or 1, t, hd/2].

    The product of complex numbers in real arithmetic, in fp32: the same sums, to the last bit.
    """
    import torch

    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return turned.flatten(3).to(x.dtype)
