"""The manifest: everything a bundle says about itself, as data. See docs/architecture.md for the folder around it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, FiniteFloat

from accelaes_export.contract.records import Record
from accelaes_export.contract.tensors import Count, GraphContract
from accelaes_export.policies.drift_plans import DriftSchedule

SCHEMA_VERSION = 4


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


class Latents(Record):
    """Geometry between pixels, latents and tokens. Tokens are row-major, of videos frame by frame.

    N = (frames / patch_frames) * (height / patch) * (width / patch).
    """

    channels: Count  # C
    out_channels: Count  # of the prediction
    height: Count  # Hl, in latent cells
    width: Count  # Wl
    patch: Count  # p
    vae_scale: Count  # pixels per latent cell
    frames: Count | None = None  # latent frames; None: a picture
    patch_frames: Count = 1
    frame_scale: Count = 1  # video frames per latent frame
    packed: bool = False  # the pipeline hands over and takes back tokens [B, N, p·p·C], as FLUX does
    sigma_channels: int = Field(default=0, ge=0)  # learned variance behind the prediction, thrown away

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of a picture or frame."""
        return self.height // self.patch, self.width // self.patch

    @property
    def tokens(self) -> int:
        """N."""
        rows, columns = self.grid
        return rows * columns * ((self.frames or 1) // self.patch_frames)

    @property
    def token_width(self) -> int:
        """Numbers predicted for one token: p·p·C, of videos times the frames of a patch."""
        return self.patch_frames * self.patch**2 * self.out_channels

    @property
    def shape(self) -> tuple[int, ...]:
        """One row of the transformer's `hidden_states`."""
        if self.packed:
            return self.tokens, self.patch**2 * self.channels
        frames = () if self.frames is None else (self.frames,)
        return (self.channels, *frames, self.height, self.width)

    @property
    def moves(self) -> bool:
        """Whether there is more than one frame."""
        return self.frames is not None and self.frames > 1

    @property
    def size(self) -> dict[str, int]:
        """The pipeline's size arguments for this geometry, in pixels and video frames."""
        pixels = {"height": self.height * self.vae_scale, "width": self.width * self.vae_scale}
        return pixels if self.frames is None else {**pixels, "num_frames": (self.frames - 1) * self.frame_scale + 1}

    @property
    def asked_for(self) -> str:
        """`size` as it is written in a call: "height=48, width=48"."""
        return ", ".join(f"{name}={value}" for name, value in self.size.items())


class Guidance(Record):
    """How the family's pipelines apply classifier-free guidance.

    Attributes:
        layout: the rows of a guided call are the unconditional images, then the conditional ones, or the other way
            round; or there is a call for each, the conditional one first; or one pass only (distilled).
        channels: how many of a prediction's leading channels are guided; the rest are the conditional row's. None: all.
        argument: of the pipeline's call, with the scale; `true_cfg_scale` counts with a negative prompt alone.
    """

    layout: Literal["uncond_cond", "cond_uncond", "separate", "none"]
    channels: Count | None = None
    argument: Literal["guidance_scale", "true_cfg_scale"] = "guidance_scale"

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
        fixed: arguments the engine was built for one value of.
        attributes: attributes that pipelines read from their transformer, beside its config.
    """

    pipelines: tuple[str, ...]
    signature: tuple[str, ...]
    guidance: Guidance
    built_in: tuple[str, ...] = ()
    fixed: dict[str, Any] = Field(default_factory=dict)
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


class Parity(Record):
    """One comparison of a session with its reference, made while building or verifying; of the output that is farthest.

    Attributes:
        max_abs, max_rel: the largest difference, and that over the output's largest value; at most `tolerance`.
        norm_rel: the difference's norm over the output's, at most `norm_tolerance`. Single values of bf16 may be far
            off in a right engine, but not all of them. None in bundles of before schema 4.
        device: where the session ran; "" in bundles of before schema 4.
    """

    bucket: int  # n
    reference: str  # "diffusers" (n = N) or "eager focus step"
    max_abs: float
    max_rel: float
    tolerance: float
    passed: bool
    norm_rel: float | None = None
    norm_tolerance: float | None = None
    device: str = ""

    @property
    def errors(self) -> str:
        """In words: how far it is off and how far it may be."""
        said = f"{self.max_rel:.2g} of its range, where {self.tolerance:g} is allowed"
        if self.norm_rel is None or self.norm_tolerance is None:
            return said
        return f"{said}, and {self.norm_rel:.2g} of its norm, where {self.norm_tolerance:g} is,"


class BackendRecord(Record):
    name: str
    versions: dict[str, str]
    targets: tuple[str, ...]
    files: tuple[str, ...]  # the engine's files, relative to the bundle
    plugin: str | None = None
    notes: tuple[str, ...] = ()


class EngineWithout(Record):
    """The engine of a step that leaves a range of blocks out.

    Attributes:
        contract: its tensor table; `contract.without` is the range.
        folder: in the bundle; `files` are in it.
        flops: of one call at the largest B.
    """

    contract: GraphContract
    folder: str
    files: tuple[str, ...]
    flops: int = Field(ge=0)


class Defaults(Record):
    """What `run` does when nothing else is asked for."""

    steps: int = Field(ge=1, le=1000)
    guidance: FiniteFloat
    policy: str
    policy_options: dict[str, Any] = Field(default_factory=dict)
    plan: str  # the policy's plan for `steps`, one symbol a step
    plans: dict[float, DriftSchedule] = Field(default_factory=dict)  # drift's by step budget, ascending


class Manifest(Record):
    """manifest.json. `dense_flops` and `bucket_flops` count one call at the largest B (multiply-adds times two)."""

    schema_version: int = SCHEMA_VERSION
    created_by: str  # "accelaes-export 0.1.0"
    build_key: str  # hash of everything the engine depends on
    model: str  # recipe name
    family: str  # "sd3"
    form: Literal["token", "component"]
    source: Source
    latents: Latents
    text: tuple[TextSegment, ...]
    layers: Count  # L
    affinity_layers: tuple[int, ...]
    bucket_fractions: tuple[FiniteFloat, ...]  # n/N asked for, ascending, 1.0 last
    contract: GraphContract
    transformer_config: dict[str, Any]  # the diffusers config, for drop-in and verify
    call: TransformerCall
    spatial_cfg: bool  # whether the family supports region-wise guidance by default
    token_scorer: str  # "clip" or "lexical": how prompt words are scored
    anchors: tuple[str, ...]
    backend: BackendRecord
    recipe: dict[str, Any]
    defaults: Defaults
    bucket_flops: dict[int, int]  # n -> FLOPs of one focus step
    without: tuple[EngineWithout, ...] = ()  # in the order of contract.ranges
    files: dict[str, FileRecord]  # every file but the manifest itself
    parity: tuple[Parity, ...] = ()
    measured_on: str = ""  # machine the parity figures come from

    @property
    def sparse_fractions(self) -> tuple[float, ...]:
        """n/N of the buckets below 1, which a plan's letters stand for."""
        return tuple(fraction for fraction in self.bucket_fractions if fraction < 1)

    @property
    def range_shares(self) -> tuple[float, ...]:
        """Share of the blocks that a step without each range computes, which a plan's digits stand for."""
        return self.contract.shares

    @property
    def range_flops(self) -> tuple[int, ...]:
        """FLOPs of a step without each range."""
        return tuple(engine.flops for engine in self.without)
