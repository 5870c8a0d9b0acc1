"""What can be built: every installed recipe with what follows from it, for `accelaes-export models`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from accelaes_export import recipes
from accelaes_export.backbones import backbone_of
from accelaes_export.backbones.checkpoints import complete_config


@dataclass(frozen=True)
class Model:
    """One recipe, read with its family's backbone.

    Attributes:
        source: a hub id, or "ships with the package".
        resolution: the default, height and width in pixels.
        tokens, text_tokens: N and M at that resolution.
        buckets: fractions n/N below 1; dense is always there.
        forms: of the focus step: "token" and, where a family has it, "component".
        spatial_cfg: whether region-wise guidance (Eq. 11) is on by default.
        guidance: the pipeline's default scale, of classifier-free guidance or of a distilled model's own input.
        tested: with the published weights.
    """

    name: str
    title: str
    family: str
    source: str
    resolution: tuple[int, int]
    tokens: int
    text_tokens: int
    dtype: str
    buckets: tuple[float, ...]
    forms: tuple[str, ...]
    spatial_cfg: bool
    guidance: float
    steps: int
    tested: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def models() -> tuple[Model, ...]:
    """Every installed recipe, by name."""
    return tuple(map(model, recipes.names()))


def model(name: str) -> Model:
    """The recipe called `name`; InputError lists all names where there is no such recipe."""
    return _model(recipes.load(name))


def _model(recipe: recipes.BuildRecipe) -> Model:
    backbone = backbone_of(recipe.family)
    config = complete_config(backbone, recipe.architecture())
    latents = backbone.latents(config, recipe.resolution, recipe.vae_scale, recipe.frames)
    return Model(
        name=recipe.name,
        title=recipe.title,
        family=recipe.family,
        source=recipe.checkpoint if recipe.shipped_checkpoint is None else "ships with the package",
        resolution=recipe.resolution,
        tokens=latents.tokens,
        text_tokens=recipe.text_tokens,
        dtype=recipe.dtype,
        buckets=recipe.buckets,
        forms=backbone.forms,
        spatial_cfg=recipe.spatial_cfg,
        guidance=recipe.guidance,
        steps=recipe.steps,
        tested=recipe.tested,
    )
