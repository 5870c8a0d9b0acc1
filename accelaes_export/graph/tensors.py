"""The tensor table of a backbone's focus step: which inputs and outputs, in which order, with which letters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from accelaes_export.backbones.base import AttentionSite, Backbone, PartSite
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.tensors import (
    AFFINITY,
    BACKGROUND_INDEX,
    BACKGROUND_PREDICTION,
    FOCUS_INDEX,
    FOCUS_PREDICTION,
    HIDDEN_STATES,
    OBSERVED_INDEX,
    TIMESTEP,
    TOKEN_WEIGHTS,
    CacheEntry,
    GraphContract,
    TensorSpec,
)
from accelaes_export.errors import InputError
from accelaes_export.graph.layerwise import layerwise_step
from accelaes_export.graph.ranges import block_ranges
from accelaes_export.policies.layer_schedule import Ranking

# cuBLAS and the attention kernels work in tiles; a focus count that is a multiple of 8 keeps them full in fp16.
_FOCUS_MULTIPLE = 8
_JOINT_TEXT_MULTIPLE = 64


def focus_tokens(fraction: float, tokens: int) -> int:
    """n for a bucket n/N: the nearest multiple of 8 if that moves n/N by 1 % at most, else plain rounding."""
    exact = fraction * tokens
    aligned = round(exact / _FOCUS_MULTIPLE) * _FOCUS_MULTIPLE
    n = aligned if abs(aligned - exact) <= 0.01 * tokens else round(exact)
    return min(max(n, 1), tokens)


def graph_contract(
    backbone: Backbone,
    model: Any,
    latents: Latents,
    *,
    form: str = "token",
    dtype: str,
    batch: int,
    fractions: Sequence[float],
    text_tokens: int,
    dynamic_text: bool,
    text_multiple: int = 1,
    ranges: Sequence[tuple[int, int]] = (),
    ranking: Ranking | None = None,
) -> GraphContract:
    """The contract of one form of a model's focus step.

    Args:
        model: the transformer; on the meta device will do.
        form: "token" or "component".
        fractions: buckets n/N below 1, ascending; the dense bucket is added.
        text_tokens: M; 0 for a model without text.
        text_multiple: what masked texts are padded to a multiple of.
        ranges: (first, last) of blocks that other graphs leave out; what they change is among the outputs.
        ranking: of a layer-wise step's parts, where there is to be one beside this.

    Raises:
        InputError: two fractions give the same number of tokens at this resolution, the family has no such form, or
            the model no such blocks.
    """
    if form not in backbone.forms:
        raise InputError(f"The family {backbone.family} has no {form} form; allowed are {', '.join(backbone.forms)}.")
    sites = backbone.sites(model)
    cache = _parts(sites) if form == "component" else _keys_and_values(sites)
    observed = any(isinstance(site, AttentionSite) and site.reads_text for site in sites)
    conditioning = (*backbone.conditioning(model.config, dtype), *backbone.rotations(model.config, latents))
    # fp32 whatever the dtype: sigma * 1000 loses its fraction in half precision.
    timestep = TensorSpec(name=TIMESTEP, dtype="fp32", shape=("B",), limit=backbone.timestep_limit)
    left_out = block_ranges(backbone, model, ranges, latents, form=form, dtype=dtype)
    hidden_states = TensorSpec(name=HIDDEN_STATES, dtype=dtype, shape=("B", *latents.shape))
    predictions = {FOCUS_PREDICTION: "n"} | ({BACKGROUND_PREDICTION: "m"} if form == "component" else {})
    return GraphContract(
        dtype=dtype,
        batch=batch,
        pairs=backbone.guidance.pairs,
        tokens=latents.tokens,
        buckets=_buckets(fractions, latents.tokens),
        text_tokens=text_tokens,
        dynamic_text=dynamic_text,
        text_multiple=text_multiple,
        conditioning=tuple(spec.name for spec in conditioning),
        inputs=(
            hidden_states,
            timestep,
            *conditioning,
            *_indices(form, observed),
            *(_cached(entry, "_bg", "m", dtype) for entry in cache),
        ),
        outputs=(
            *(
                TensorSpec(name=name, dtype=dtype, shape=("B", tokens, latents.token_width))
                for name, tokens in predictions.items()
            ),
            *((TensorSpec(name=AFFINITY, dtype="fp32", shape=("B", "a")),) if observed else ()),
            *(_cached(entry, "", "n", dtype) for entry in cache),
            *(spec for blocks in left_out for spec in blocks.changes),
        ),
        cache=cache,
        ranges=left_out,
        layerwise=None if ranking is None else layerwise_step(backbone, model, ranking, latents, dtype=dtype),
    )


def _buckets(fractions: Sequence[float], N: int) -> tuple[int, ...]:
    """n of every bucket, N last."""
    buckets = tuple(focus_tokens(fraction, N) for fraction in fractions)
    if len({*buckets, N}) != len(buckets) + 1:
        raise InputError(
            f"Buckets {', '.join(f'{f:g}' for f in fractions)} of N = {N} tokens give {', '.join(map(str, buckets))} "
            "focus tokens; each bucket must have its own number below N: leave some out, or build a higher resolution."
        )
    return (*buckets, N)


def _indices(form: str, observed: bool) -> Iterator[TensorSpec]:
    """Which tokens are computed, and how what they think of the text is observed."""
    yield TensorSpec(name=FOCUS_INDEX, dtype="int64", shape=("B", "n"))
    if form == "component":
        yield TensorSpec(name=BACKGROUND_INDEX, dtype="int64", shape=("B", "m"))
    if observed:
        yield TensorSpec(name=TOKEN_WEIGHTS, dtype="fp32", shape=("B", "M"), limit=1.0)
        # A switch: with no tokens here the affinity, which a run needs of one step, costs nothing.
        yield TensorSpec(name=OBSERVED_INDEX, dtype="int64", shape=("B", "a"))


def _cached(entry: CacheEntry, suffix: str, tokens: str, dtype: str) -> TensorSpec:
    """What is cached of a part: fresh of n tokens, or the background's of m."""
    return TensorSpec(name=f"{entry.name}{suffix}", dtype=dtype, shape=("B", entry.heads, tokens, entry.head_dim))


def few_text_lengths(backbone: Backbone, model: Any, text_tokens: int) -> int:
    """What masked texts are padded to a multiple of where every new length costs something.

    The whole window, so that there is one length. Not where text goes through the blocks with the image and padding
    would be computed in all of them.
    """
    joint = any(isinstance(site, AttentionSite) and site.reads_text and site.cached for site in backbone.sites(model))
    return min(_JOINT_TEXT_MULTIPLE if joint else text_tokens, text_tokens) or 1


def affinity_layers(backbone: Backbone, model: Any, every: int, chosen: Sequence[int] | None = None) -> tuple[int, ...]:
    """Every k-th of the layers whose attention reads the text, or the `chosen` ones.

    Raises:
        InputError: a chosen layer doesn't read the text.
    """
    reading = [site.layer for site in backbone.sites(model) if isinstance(site, AttentionSite) and site.reads_text]
    if chosen is None:
        return tuple(reading[::every])
    deaf = [layer for layer in chosen if layer not in reading]
    if deaf:
        raise InputError(
            f"The affinity is to come from block {deaf[0]}, which doesn't attend to the text; "
            f"{f'those that do are {reading[0]} to {reading[-1]}' if reading else 'none of this model does'}."
        )
    return tuple(sorted(set(chosen)))


def layers(backbone: Backbone, model: Any) -> int:
    """L, transformer blocks."""
    return 1 + max(site.layer for site in backbone.sites(model))


def _keys_and_values(sites: Sequence[AttentionSite | PartSite]) -> tuple[CacheEntry, ...]:
    return tuple(
        CacheEntry(name=f"cache.{site.layer}.{letter}{site.suffix}", heads=site.heads, head_dim=site.head_dim)
        for site in sites
        if isinstance(site, AttentionSite) and site.cached
        for letter in "kv"
    )


def _parts(sites: Sequence[AttentionSite | PartSite]) -> tuple[CacheEntry, ...]:
    return tuple(
        CacheEntry(name=f"cache.{site.layer}.{site.name}", heads=1, head_dim=site.width)
        for site in sites
        if isinstance(site, PartSite) and site.name
    )
