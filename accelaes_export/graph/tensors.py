"""The tensor table of a backbone's focus step: which inputs and outputs, in which order, with which letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelaes_export.backbones.base import Backbone
from accelaes_export.contract import GraphContract, TensorSpec
from accelaes_export.errors import InputError
from accelaes_export.manifest import Latents

# cuBLAS and the attention kernels work in tiles; a focus count that is a multiple of 8 keeps them full in fp16.
_FOCUS_MULTIPLE = 8


def focus_tokens(fraction: float, tokens: int) -> int:
    """n for a bucket n/N: the nearest multiple of 8 if that moves n/N by 1 % at most, else plain rounding."""
    exact = fraction * tokens
    aligned = round(exact / _FOCUS_MULTIPLE) * _FOCUS_MULTIPLE
    n = aligned if abs(aligned - exact) <= 0.01 * tokens else round(exact)
    return min(max(n, 1), tokens)


def graph_contract(
    backbone: Backbone,
    config: Mapping[str, Any],
    latents: Latents,
    *,
    dtype: str,
    batch: int,
    fractions: Sequence[float],
    text_tokens: int,
    dynamic_text: bool,
) -> GraphContract:
    """The contract of the `token` form for a model's config and geometry.

    Args:
        fractions: buckets n/N below 1, ascending; the dense bucket is added.
        text_tokens: M.

    Raises:
        InputError: two fractions give the same number of tokens at this resolution.
    """
    N = latents.tokens
    buckets = tuple(focus_tokens(fraction, N) for fraction in fractions)
    if len({*buckets, N}) != len(buckets) + 1:
        raise InputError(
            f"Buckets {', '.join(f'{f:g}' for f in fractions)} of N = {N} tokens give {', '.join(map(str, buckets))} "
            "focus tokens; each bucket must have its own number below N: leave some out, or build a higher resolution."
        )
    cache = backbone.cache(config)
    conditioning = backbone.conditioning(config, dtype)
    pixels = ("B", latents.channels, latents.height, latents.width)
    inputs = [
        TensorSpec(name="hidden_states", dtype=dtype, shape=pixels),
        # fp32 whatever the dtype: sigma * 1000 loses its fraction in half precision.
        TensorSpec(name="timestep", dtype="fp32", shape=("B",)),
        *conditioning,
        TensorSpec(name="focus_index", dtype="int64", shape=("B", "n")),
        TensorSpec(name="token_weights", dtype="fp32", shape=("B", "M")),
        *(
            TensorSpec(name=f"{entry.name}_bg", dtype=dtype, shape=("B", entry.heads, "m", entry.head_dim))
            for entry in cache
        ),
    ]
    outputs = [
        TensorSpec(name="focus_prediction", dtype=dtype, shape=("B", "n", backbone.prediction_width(config))),
        TensorSpec(name="affinity", dtype="fp32", shape=("B", "n")),
        *(TensorSpec(name=entry.name, dtype=dtype, shape=("B", entry.heads, "n", entry.head_dim)) for entry in cache),
    ]
    return GraphContract(
        dtype=dtype,
        batch=batch,
        tokens=N,
        buckets=(*buckets, N),
        text_tokens=text_tokens,
        dynamic_text=dynamic_text,
        conditioning=tuple(spec.name for spec in conditioning),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        cache=cache,
    )
