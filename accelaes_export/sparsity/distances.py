"""How far a run's end is from where it should be, with a gradient: of latents, or of the pictures they become."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from accelaes_export.backbones import backbone_of
from accelaes_export.contract.manifest import Manifest
from accelaes_export.errors import InputError

Between = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of two batches [b, ...]: [b], how far each is from the other's; differentiable in the first."""

LATENTS = "latents"


@dataclass(frozen=True)
class Distance:
    """A distance by name.

    Attributes:
        between: of latents [b, ...].
    """

    name: str
    between: Between


def of_latents() -> Distance:
    """The root mean square of what latents differ by."""
    return Distance(LATENTS, lambda found, wanted: (found - wanted).flatten(1).square().mean(dim=1).sqrt())


def of_pictures(name: str, between: Between, manifest: Manifest, pipe: Any) -> Distance:
    """A distance of pictures [b, 3, H, W] in [0, 1], decoded by the pipeline's VAE.

    Raises:
        InputError: a pipeline whose VAE isn't diffusers' own, or of videos.
    """
    geometry = manifest.geometry.latents
    vae = getattr(pipe, "vae", None)
    if geometry.moves or not isinstance(vae, torch.nn.Module) or not list(vae.parameters()):
        raise InputError(
            f"The distance {name} needs pictures that the checkpoint's own VAE decodes, and this bundle brings another "
            "or makes videos; take the distance latents, or a bundle built without its VAE."
        )
    backbone, own = backbone_of(manifest.family), cast("Any", vae.requires_grad_(False))

    def pictures(latents: torch.Tensor) -> torch.Tensor:
        z = backbone.decoder_latents(latents, geometry, own)
        return (own.decode(z.to(own.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    return Distance(name, lambda found, wanted: between(pictures(found), pictures(wanted)))


def named(name: str) -> Between:
    """The distance of pictures that MODULE:ATTRIBUTE names.

    Raises:
        InputError: there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"The distance {name!r} can't be imported ({error}); give latents, lpips, or MODULE:FUNCTION of two "
            "batches of pictures."
        ) from None
    if not callable(found):
        raise InputError(f"The distance {name!r} isn't a function of two batches of pictures; give one that is.")
    between: Between = found
    return between
