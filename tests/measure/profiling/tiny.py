"""Small models of every family with a manifest around them, so that a profile can be taken without a build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.geometry import Geometry
from accelaes_export.contract.manifest import Defaults, Manifest, TextSegment, TransformerCall
from accelaes_export.graph.focus_step import FocusStep, count_flops
from tests.eager_session import EagerSession
from tests.fake_bundle import fake_manifest, write_fake_bundle
from tests.families import FAMILIES

FRACTIONS = (0.25, 0.5, 0.75, 1.0)


def tiny(
    family: str, *, batch: int = 1, guidance: float = 4.5, variant: str | None = None
) -> tuple[Manifest, torch.nn.Module, FocusStep]:
    """The manifest, the diffusers model, and a focus step of a second model with the same weights.

    They are those of the manifest's random source, so that `source_model` makes a third.
    """
    sort = FAMILIES[family]
    variant = variant or next(iter(sort.variants))
    model, twin = sort.model(variant), sort.model(variant)
    step = sort.step(twin, variant, batch=batch)
    backbone = sort.backbone
    geometry = Geometry(
        latents=step.latents,
        contract=step.contract,
        bucket_flops={n: count_flops(step, n) for n in step.contract.buckets},
    )
    changes: dict[str, Any] = {
        "family": family,
        "geometries": (geometry,),
        "bucket_fractions": FRACTIONS,
        "text": _text(step.contract.text_tokens),
        "affinity_layers": (0,) if "affinity" in step.contract.has else (),
        "transformer_config": sort.full_config(variant),
        "call": TransformerCall(pipelines=backbone.pipelines, signature=backbone.signature, guidance=backbone.guidance),
        "defaults": Defaults(steps=12, guidance=guidance, policy="accelaes", plan="D" * 12),
    }
    return fake_manifest(**changes), model.eval(), step


def _text(positions: int) -> tuple[TextSegment, ...]:
    return (TextSegment(tokenizers=("tokenizer",), length=positions),) if positions else ()


def tiny_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch, family: str = "sd3", **options: Any) -> Bundle:
    """A bundle in `folder` whose engine is the eager focus step, in this process."""
    manifest, _, step = tiny(family, **options)
    session = EagerSession(step)
    monkeypatch.setattr(Bundle, "session", lambda self: session)
    changes = {name: getattr(manifest, name) for name in manifest.model_fields_set}
    return write_fake_bundle(folder, **{name: value for name, value in changes.items() if name != "files"})
