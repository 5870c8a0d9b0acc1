"""The registry of DiT families. A family is one file here: docs/architecture.md says what a backbone provides."""

from __future__ import annotations

from accelaes_export.backbones.base import Backbone
from accelaes_export.backbones.dit import DiTBackbone
from accelaes_export.backbones.flux import FluxBackbone
from accelaes_export.backbones.ltx import LTXBackbone
from accelaes_export.backbones.lumina import LuminaBackbone
from accelaes_export.backbones.pixart import PixArtBackbone
from accelaes_export.backbones.qwen_image import QwenImageBackbone
from accelaes_export.backbones.sd3 import SD3Backbone
from accelaes_export.backbones.wan import WanBackbone
from accelaes_export.errors import InputError

_BACKBONES: tuple[Backbone, ...] = (
    SD3Backbone(),
    LuminaBackbone(),
    FluxBackbone(),
    WanBackbone(),
    PixArtBackbone(),
    DiTBackbone(),
    QwenImageBackbone(),
    LTXBackbone(),
)

__all__ = ["Backbone", "backbone_of", "backbones"]


def backbones() -> tuple[Backbone, ...]:
    """Every backbone."""
    return _BACKBONES


def backbone_of(family: str) -> Backbone:
    """The backbone of a family; InputError lists the known ones."""
    for candidate in _BACKBONES:
        if candidate.family == family:
            return candidate
    known = ", ".join(candidate.family for candidate in _BACKBONES)
    raise InputError(f"There is no backbone family {family!r}; known families: {known}.")
