"""Bundles for the device under test, with random weights, compiled by AOTInductor."""

from __future__ import annotations

import torch

from accelaes_export import recipes
from accelaes_export.building.builder import build
from tests.families import FAMILIES

RECIPES = {
    "sd3": "sd3",
    "flux": "flux-dev",
    "lumina": "lumina-next",
    "pixart": "pixart-sigma",
    "dit": "dit-xl-2",
    "qwen-image": "qwen-image",
    "wan": "wan2.1-1.3b",
}
TWO_BLOCKS = {
    "sd3": {"num_layers": 2},
    "flux-dev": {"num_layers": 1, "num_single_layers": 1},
    "lumina-next": {"num_layers": 2},
}


def target(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" else "cpu"


def dtype_of(device: torch.device) -> str:
    return "fp16" if device.type == "cuda" else "fp32"


def small(folder, family: str, device: torch.device, **options):
    """A family's tiny model, in fp16 on a GPU."""
    tiny = FAMILIES[family]
    variant = next(iter(tiny.variants))
    recipe = recipes.load(RECIPES[family])
    text = tuple(s.model_copy(update={"length": tiny.text_tokens}) for s in recipe.text[:1])
    recipe = recipe.model_copy(
        update={
            "transformer_config": tiny.full_config(variant),
            "text": text,
            "vae_scale": tiny.vae_scale,
            "affinity_blocks": None,
        }
    )
    options = {
        "dtype": dtype_of(device),
        "buckets": (0.25, 0.5),
        "affinity_layers": 1,
        "frames": tiny.frames,
        **options,
    }
    return build(
        model=recipe,
        backend="aoti",
        targets=target(device),
        resolution=tiny.resolutions[0],
        random_weights=True,
        output=folder / f"{family}-{options.get('form', 'token')}",
        **options,
    )


def two_blocks(folder, name: str, device: torch.device):
    """The published width and size, two blocks deep."""
    recipe = recipes.load(name)
    shallow = recipe.override(transformer_config=recipe.architecture() | TWO_BLOCKS[name])
    return build(
        model=shallow, backend="aoti", targets=target(device), random_weights=True, output=folder / name, buckets="0.5"
    )


def shapes(folder, device: torch.device, **options):
    """The shipped checkpoint."""
    where = {"targets": target(device), "dtype": dtype_of(device), "output": folder / "shapes"}
    return build(model="shapes", backend="aoti", **where, **{"presets": "none", **options})
