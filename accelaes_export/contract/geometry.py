"""What a bundle says about a size of picture or video: latents and tokens, the tensor table, costs and parity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, FiniteFloat

from accelaes_export.contract.components import AutoencoderGraphs
from accelaes_export.contract.presets import Preset
from accelaes_export.contract.records import Record
from accelaes_export.contract.tensors import Count, GraphContract


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


class PartFlops(Record):
    """FLOPs of one kind of part of a layer-wise step at the largest B.

    Attributes:
        once: of computing any token: keys and values of all.
        token: of each token.
    """

    once: FiniteFloat = Field(ge=0)
    token: FiniteFloat = Field(ge=0)


class EngineBeside(Record):
    """The engine of a step beside the focus step: one that leaves a range of blocks out, or the layer-wise one.

    Attributes:
        contract: its tensor table, with `without` or `own_parts`.
        folder: in the bundle; `files` are in it.
        flops: of one call at the largest B; where every part computes all tokens.
        part_flops: of a layer-wise step's parts, by label.
    """

    contract: GraphContract
    folder: str
    files: tuple[str, ...]
    flops: int = Field(ge=0)
    part_flops: dict[str, PartFlops] = Field(default_factory=dict)

    def flops_of(self, counts: Sequence[int]) -> float:
        """FLOPs of a layer-wise step whose parts compute so many tokens."""
        assert self.contract.own_parts is not None, "the engine is a layer-wise step's"
        labels, N = self.contract.own_parts.labels, self.contract.tokens
        left_out = 0.0
        for label, count in zip(labels, counts, strict=True):
            part = self.part_flops[label]
            left_out += part.token * (N - count) + (0 if count else part.once)
        return self.flops - left_out


class Geometry(Record):
    """A size of picture or video that a bundle makes, and everything in it that depends on the size.

    Attributes:
        contract: the focus step's tensor table.
        fixed: arguments of the pipeline's call that the engine was built for one value of.
        bucket_flops: n -> FLOPs of one call at the largest B (multiply-adds times two).
        without: the engines of steps that leave blocks out, in the order of contract.ranges.
        layerwise: the engine of the layer-wise step, where there is one.
        presets: policies as graphs, for runtimes without a policy's code.
        vae: the VAE as graphs, where the bundle has it.
    """

    latents: Latents
    contract: GraphContract
    fixed: dict[str, Any] = Field(default_factory=dict)
    bucket_flops: dict[int, int]
    without: tuple[EngineBeside, ...] = ()
    layerwise: EngineBeside | None = None
    parity: tuple[Parity, ...] = ()
    presets: tuple[Preset, ...] = ()
    vae: AutoencoderGraphs | None = None

    @property
    def folders(self) -> tuple[str, ...]:
        """Of its engines in the bundle, the focus step's first: that is the bundle's own, ""."""
        return ("", *(engine.folder for engine in self.beside))

    @property
    def beside(self) -> tuple[EngineBeside, ...]:
        """The engines beside the focus step's, in the order they are built in."""
        return (*self.without, *(() if self.layerwise is None else (self.layerwise,)))

    @property
    def range_flops(self) -> tuple[int, ...]:
        """FLOPs of a step without each range."""
        return tuple(engine.flops for engine in self.without)
