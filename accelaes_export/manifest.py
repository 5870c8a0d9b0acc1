"""The manifest: everything a bundle says about itself, as data. See docs/architecture.md for the folder around it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from accelaes_export.contract import GraphContract

SCHEMA_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Record):
    """Where the weights came from.

    `location` is a folder, a hub id, "shipped:NAME" for a checkpoint installed with this package, or "random" (with
    `seed`); `weights_sha256` is the hash over the transformer's config and safetensors files, or over the
    architecture and seed of random weights.
    """

    kind: Literal["folder", "hub", "shipped", "random"]
    location: str
    weights_sha256: str
    revision: str | None = None
    seed: int | None = None


class Latents(_Record):
    """Geometry between pixels, latents and tokens. N = (height / patch) * (width / patch), row-major."""

    channels: int  # C
    out_channels: int
    height: int  # Hl, in latent cells
    width: int  # Wl
    patch: int  # p
    vae_scale: int  # pixels per latent cell

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns."""
        return self.height // self.patch, self.width // self.patch

    @property
    def tokens(self) -> int:
        """N."""
        rows, columns = self.grid
        return rows * columns


class TextSegment(_Record):
    """A run of text positions and the pipeline's tokenizers that fill it (they share positions channel-wise).

    SD3: 77 positions of `tokenizer` and `tokenizer_2`, then up to 256 of `tokenizer_3`.
    """

    tokenizers: tuple[str, ...]  # attribute names on the diffusers pipeline
    length: int


class FileRecord(_Record):
    sha256: str
    size: int


class Parity(_Record):
    """One comparison made while building or verifying: `max_abs` and `max_rel` of a session against its reference."""

    bucket: int  # n
    reference: str  # "diffusers" (n = N) or "eager focus step"
    max_abs: float
    max_rel: float
    tolerance: float
    passed: bool


class BackendRecord(_Record):
    name: str
    versions: dict[str, str]
    targets: tuple[str, ...]
    files: tuple[str, ...]  # the engine's files, relative to the bundle
    plugin: str | None = None
    notes: tuple[str, ...] = ()


class Defaults(_Record):
    """What `run` does when nothing else is asked for."""

    steps: int
    guidance: float
    policy: str
    policy_options: dict[str, Any] = Field(default_factory=dict)
    plan: str  # the policy's plan for `steps`, one symbol a step


class Manifest(_Record):
    """manifest.json. `dense_flops` and `bucket_flops` count one call at B = 2 * batch (multiply-adds times two)."""

    schema_version: int = SCHEMA_VERSION
    created_by: str  # "accelaes-export 0.1.0"
    build_key: str  # hash of everything the engine depends on
    model: str  # recipe name
    family: str  # "sd3"
    form: Literal["token", "component"]
    source: Source
    latents: Latents
    text: tuple[TextSegment, ...]
    layers: int  # L
    affinity_layers: tuple[int, ...]
    bucket_fractions: tuple[float, ...]  # n/N asked for, ascending, 1.0 last
    contract: GraphContract
    transformer_config: dict[str, Any]  # the diffusers config, for drop-in and verify
    pipelines: tuple[str, ...]  # diffusers pipelines the drop-in serves
    signature: tuple[str, ...]  # the transformer call's leading parameters, in diffusers' order
    spatial_cfg: bool  # whether the family supports region-wise guidance by default
    token_scorer: str  # "clip" or "lexical": how prompt words are scored
    anchors: tuple[str, ...]
    backend: BackendRecord
    recipe: dict[str, Any]
    defaults: Defaults
    bucket_flops: dict[int, int]  # n -> FLOPs of one focus step
    files: dict[str, FileRecord]  # every file but the manifest itself
    parity: tuple[Parity, ...] = ()
    measured_on: str = ""  # machine the parity figures come from
