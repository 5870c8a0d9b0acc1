"""What the GPU benchmark measures: recipes at full size, or cut down to show that the script works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelaes_export.recipes import BuildRecipe

MODELS = ("sd3", "lumina-next", "flux-dev")
BUCKETS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)

_DEPTH = {"flux-dev": ("num_layers", "num_single_layers")}
_SMALL: dict[str, dict[str, Any]] = {
    "sd3": {
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 64,
        "pooled_projection_dim": 16,
        "pos_embed_max_size": 16,
    },
    "lumina-next": {
        "num_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "cross_attention_dim": 32,
        "multiple_of": 16,
    },
    "flux-dev": {
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 16,
        "axes_dims_rope": [4, 6, 6],
    },
}


def split(label: str) -> tuple[str, float]:
    """A model's name and the share of its blocks that is kept, from NAME or NAME@DEPTH; ValueError for another text."""
    name, marked, depth = label.partition("@")
    share = float(depth) if marked else 1.0
    if name not in MODELS or not 0 < share <= 1:
        raise ValueError(f"{label!r} was given; name some of {', '.join(MODELS)}, each with @ and a depth up to 1")
    return name, share


def recipe(name: str, *, tiny: bool, depth: float) -> BuildRecipe:
    """The recipe with every eighth as a bucket.

    Args:
        tiny: a few blocks of small width at 128 x 128 pixels in fp32, for a CPU.
        depth: share of the blocks that are kept; the time of a step is proportional to it.
    """
    from accelaes_export import recipes

    found = recipes.load(name)
    config = found.architecture() | (_SMALL[name] if tiny else {})
    for field in _DEPTH.get(name, ("num_layers",)):
        config[field] = max(1, round(depth * config[field]))
    found = found.model_copy(update={"transformer_config": config})
    if tiny:
        text = tuple(segment.model_copy(update={"length": 8}) for segment in found.text)
        found = found.model_copy(update={"text": text}).override(resolution="128x128", dtype="fp32")
    return found.override(buckets=BUCKETS)
