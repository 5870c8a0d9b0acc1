"""The manifest: everything a bundle says about itself, as data. See docs/architecture.md for the folder around it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, FiniteFloat

from accelaes_export.contract.components import Components
from accelaes_export.contract.geometry import Geometry
from accelaes_export.contract.records import Record
from accelaes_export.contract.tensors import Count
from accelaes_export.policies.drift_plans import DriftSchedule

SCHEMA_VERSION = 12


class Source(Record):
    """Where the weights came from.

    `location` is a folder, a hub id (`revision` is its commit), "shipped:NAME" for a checkpoint installed with this
    package, or "random" (with `seed`); `variant` is that of the weight files, such as fp16. `weights_sha256` is the
    hash over the transformer's config and safetensors files, or over the architecture and seed of random weights.
    """

    kind: Literal["folder", "hub", "shipped", "random"]
    location: str
    weights_sha256: str
    revision: str | None = None
    variant: str | None = None
    seed: int | None = None


class Guidance(Record):
    """How the family's pipelines apply classifier-free guidance.

    Attributes:
        layout: the rows of a guided call are the unconditional images, then the conditional ones, or the other way
            round; or there is a call for each, the conditional one first; or one pass only (distilled).
        channels: how many of a prediction's leading channels are guided; the rest are the conditional row's. None: all.
        argument: of the pipeline's call, with the scale; `true_cfg_scale` counts with a negative prompt alone.
        rescaled: whether every token of a guided prediction is scaled to the length of the conditional one's.
    """

    layout: Literal["uncond_cond", "cond_uncond", "separate", "none"]
    channels: Count | None = None
    argument: Literal["guidance_scale", "true_cfg_scale"] = "guidance_scale"
    rescaled: bool = False

    @property
    def pairs(self) -> bool:
        """Whether both halves come in one call."""
        return self.layout in ("uncond_cond", "cond_uncond")


class TransformerCall(Record):
    """How pipelines call the transformer that the bundle stands for.

    Attributes:
        pipelines: diffusers pipelines the drop-in serves.
        signature: the call's leading parameters, in diffusers' order.
        guidance: how the pipelines guide.
        built_in: arguments that say what the engine has built in, such as position ids; they aren't read.
        attributes: attributes that pipelines read from their transformer, beside its config.
    """

    pipelines: tuple[str, ...]
    signature: tuple[str, ...]
    guidance: Guidance
    built_in: tuple[str, ...] = ()
    attributes: dict[str, Any] = Field(default_factory=dict)


class TextSegment(Record):
    """A run of text positions and the pipeline's tokenizers that fill it (they share positions channel-wise).

    SD3: 77 positions of `tokenizer` and `tokenizer_2`, then up to 256 of `tokenizer_3`.

    Qwen-Image wraps a prompt in a `template`, and leaves the first `drop` of the tokens out once they are embedded.
    """

    tokenizers: tuple[str, ...]  # attribute names on the diffusers pipeline
    length: Count
    template: str = Field(default="{}", pattern=r"^[^{}]*\{\}[^{}]*$")  # {}: the prompt
    drop: int = Field(default=0, ge=0)


class FileRecord(Record):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class BackendRecord(Record):
    name: str
    versions: dict[str, str]
    targets: tuple[str, ...]
    files: tuple[str, ...]  # the engine's files, relative to the bundle
    plugin: str | None = None
    notes: tuple[str, ...] = ()


class Defaults(Record):
    """What `run` does when nothing else is asked for."""

    steps: int = Field(ge=1, le=1000)
    guidance: FiniteFloat
    policy: str
    policy_options: dict[str, Any] = Field(default_factory=dict)
    plan: str  # the policy's plan for `steps`, one symbol a step
    plans: dict[float, DriftSchedule] = Field(default_factory=dict)  # drift's by step budget, ascending


class Manifest(Record):
    """manifest.json."""

    schema_version: int = SCHEMA_VERSION
    created_by: str  # "accelaes-export 0.1.0"
    build_key: str  # hash of everything the engine depends on
    model: str  # recipe name
    family: str  # "sd3"
    form: Literal["token", "component"]
    source: Source
    geometries: tuple[Geometry, ...] = Field(min_length=1, max_length=1)  # this release makes one size a bundle
    text: tuple[TextSegment, ...]
    layers: Count  # L
    affinity_layers: tuple[int, ...]
    bucket_fractions: tuple[FiniteFloat, ...]  # n/N asked for, ascending, 1.0 last
    transformer_config: dict[str, Any]  # the diffusers config, for drop-in and verify
    call: TransformerCall
    spatial_cfg: bool  # whether the family supports region-wise guidance by default
    token_scorer: str  # "clip" or "lexical": how prompt words are scored
    anchors: tuple[str, ...]
    components: Components | None = None  # what the bundle has of the pipeline beside the transformer
    backend: BackendRecord
    recipe: dict[str, Any]
    defaults: Defaults
    files: dict[str, FileRecord]  # every file but the manifest itself
    measured_on: str = ""  # machine the parity figures come from

    @property
    def geometry(self) -> Geometry:
        """What pictures are made as where no size is asked for: the first."""
        return self.geometries[0]

    @property
    def complete(self) -> bool:
        """Whether the bundle has all of the pipeline, and needs no checkpoint to draw."""
        return self.components is not None and not self.components.lacking()

    @property
    def sparse_fractions(self) -> tuple[float, ...]:
        """n/N of the buckets below 1, which a plan's letters stand for."""
        return tuple(fraction for fraction in self.bucket_fractions if fraction < 1)

    @property
    def range_shares(self) -> tuple[float, ...]:
        """Share of the blocks that a step without each range computes, which a plan's digits stand for."""
        return self.geometry.contract.shares
