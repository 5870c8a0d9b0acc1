"""Recipes: what `build --model NAME` means. One YAML file each in engines/recipes/, validated into a `BuildRecipe`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from accelaes_export.contract.compile_options import CompileOptions
from accelaes_export.contract.components import ComponentName, parse_components
from accelaes_export.contract.manifest import TextSegment
from accelaes_export.errors import InputError, did_you_mean
from accelaes_export.options import parse_buckets, parse_compiling, parse_presets, parse_ranges, parse_resolution
from accelaes_export.policies import Plan
from accelaes_export.policies.drift_plans import DriftSchedule
from accelaes_export.policies.layer_schedule import Ranking, parse_ranking

if TYPE_CHECKING:
    from typing_extensions import Unpack

Schedules = dict[float, DriftSchedule]
"""Drift's by step budget."""

SHIPPED = "shipped:"
"""A checkpoint written ``shipped:NAME`` is the folder engines/checkpoints/NAME that is installed with the package."""


class PolicyChoice(BaseModel):
    """A policy by its registered name, and options that differ from its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Override(TypedDict, total=False):
    """What a build may ask for in place of its recipe's; what each means is said at `BuildRecipe`.

    Several may be written as on the command line: "1024x1024", "0.25,0.5,0.75", "0:12,12:24", "autotune,per-bucket".
    """

    resolution: str | tuple[int, int] | None
    batch: int | None
    dtype: str | None
    buckets: str | Sequence[float] | None
    block_ranges: str | Sequence[tuple[int, int]] | None
    layerwise: str | None
    affinity_every: int | None
    form: str | None
    weights: str | None
    attention: str | None
    compiling: str | Mapping[str, bool] | None
    frames: int | None
    text_multiple: int | None
    variant: str | None
    presets: str | Sequence[str] | None
    components: str | Sequence[str] | None
    plans: Mapping[float, DriftSchedule] | None


class BuildRecipe(BaseModel):
    """Everything a build needs to know beside the weights.

    Attributes:
        checkpoint: a folder, a hub id, which may end with ``@revision``, or ``shipped:NAME``.
        variant: of its weight files, such as fp16; None: the plain ones, or the only variant there is.
        tested: whether this release was tested with the published weights.
        form: of the focus step, "token" or "component".
        resolution: picture height and width in pixels.
        weights: "engine", compiled into it, or "inputs", beside a TensorRT engine (for models larger than memory).
        attention: "plugin": TensorRT takes our kernel; "native": its own; "auto": whichever was measured faster.
        compiling: how aoti generates kernels: `autotune`, `freezing`, `per_bucket`.
        frames: of a video, in latent frames; None: pictures.
        batch: images per call; guidance doubles the rows.
        buckets: fractions n/N < 1, ascending; dense (1.0) is always built beside them.
        block_ranges: (first, last) of blocks that steps may leave out (policy delta-dit); each is another engine.
        layerwise: how the parts of a layer-wise step rank tokens (policy diffsparse); it is another engine.
        affinity_every: the affinity averages every k-th block's text attention; 1 is all of them.
        affinity_blocks: the blocks by number instead, where it is known which of this checkpoint's look where the words
            point; another checkpoint falls back to `affinity_every`.
        text: runs of text positions in sequence order; their lengths add up to M. Empty for models without text.
        text_multiple: masked texts are padded to a multiple of so many tokens; None: of one on CPUs, and on GPUs of the
            window or, where text goes through the blocks with the image, of 64.
        plans: step budget to drift's plan for it, in place of the table and rule of policies.drift_plans: `symbols`
            (letters are this recipe's buckets) that cost no more, `theta`, `trend` and `cache_reach`.
        presets: policies that a bundle has as graphs, for runtimes without a policy's code: names, with options as in
            "drift:budget=12".
        components: what a bundle has of the pipeline beside the transformer, of "text", "vae" and "tokenizers": with
            all of them it needs no checkpoint to draw.
        token_scorer: how prompt words are scored against the anchors: with the CLIP text encoder, or lexically.
        anchors: anchor phrases, or None for the policy's own.
        vae_scale: pixels per latent cell.
        transformer_config: the published diffusers config, for random weights; None: the shipped checkpoint's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    family: str
    checkpoint: str
    variant: str | None = Field(default=None, pattern=r"^\w+$")
    tested: bool
    form: Literal["token", "component"] = "token"
    weights: Literal["engine", "inputs"] = "engine"
    attention: Literal["auto", "plugin", "native"] = "auto"
    compiling: Annotated[CompileOptions, BeforeValidator(parse_compiling)] = CompileOptions()
    frames: int | None = Field(default=None, ge=1)
    resolution: Annotated[tuple[int, int], BeforeValidator(parse_resolution)]
    batch: int = Field(ge=1)
    dtype: Literal["fp32", "fp16", "bf16"]
    buckets: Annotated[tuple[float, ...], BeforeValidator(parse_buckets)]
    block_ranges: Annotated[tuple[tuple[int, int], ...], BeforeValidator(parse_ranges)] = ()
    layerwise: Annotated[Ranking | None, BeforeValidator(parse_ranking)] = None
    affinity_every: int = Field(ge=1)
    affinity_blocks: tuple[int, ...] | None = Field(default=None, min_length=1)
    text: tuple[TextSegment, ...]
    text_multiple: int | None = Field(default=None, ge=1)
    steps: int = Field(ge=2)
    guidance: float = Field(ge=0)
    policy: PolicyChoice
    plans: Schedules = Field(default_factory=dict)
    presets: Annotated[tuple[str, ...], BeforeValidator(parse_presets)] = ()
    components: Annotated[tuple[ComponentName, ...], BeforeValidator(parse_components)] = ()
    spatial_cfg: bool
    token_scorer: Literal["clip", "lexical"]
    anchors: tuple[str, ...] | None = None
    vae_scale: int = Field(ge=1)
    transformer_config: dict[str, Any] | None = None

    @field_validator("text")
    @classmethod
    def _text_has_positions(cls, segments: tuple[TextSegment, ...]) -> tuple[TextSegment, ...]:
        for segment in segments:
            if segment.length < 1 or not segment.tokenizers:
                raise InputError(
                    f"A text segment of {segment.length} positions needs a tokenizer and a length above 0."
                )
        return segments

    @field_validator("plans")
    @classmethod
    def _plans_keep_their_budgets(cls, plans: Schedules, info: ValidationInfo) -> Schedules:
        for budget, own in plans.items():
            if not 1 <= budget < math.inf:
                raise InputError(f"plans.{budget:g}: a step budget is a number of at least 1; correct it.")
            if "buckets" not in info.data:
                continue  # they are wrong, which is said in their own place
            try:
                cost = Plan(own.symbols, info.data["buckets"]).cost
            except InputError as error:
                raise InputError(f"plans.{budget:g}: {error}") from error
            if cost > budget + 1e-6:
                raise InputError(
                    f"plans.{budget:g}: {own.symbols} costs {cost:g} dense steps; leave some out, or list it for a "
                    "budget that allows them."
                )
        return dict(sorted(plans.items()))

    @property
    def text_tokens(self) -> int:
        """M, the text window."""
        return sum(segment.length for segment in self.text)

    @property
    def shipped_checkpoint(self) -> Path | None:
        """The folder of a checkpoint that is installed with the package, or None."""
        return shipped_folder(self.checkpoint) if self.checkpoint.startswith(SHIPPED) else None

    def architecture(self) -> dict[str, Any]:
        """The transformer's diffusers config: the recipe's own, else the shipped checkpoint's.

        Raises InputError where the recipe has neither.
        """
        if self.transformer_config is not None:
            return dict(self.transformer_config)
        folder = self.shipped_checkpoint
        if folder is None:
            raise InputError(f"Recipe {self.name} has no transformer_config, so it can't be built with random weights.")
        try:
            config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"The shipped checkpoint {folder} has no readable transformer/config.json: {error}"
            ) from error
        return dict(config)

    def override(self, *, checkpoint: str | None = None, **fields: Unpack[Override]) -> BuildRecipe:
        """This recipe with the given fields replaced; None leaves a field as it is. Validated like a file.

        Plans by budget keep what they compute under other buckets; those that compute a bucket that isn't there any
        more are left out.
        """
        given: dict[str, Any] = {"checkpoint": checkpoint, **fields}
        changes = {field: value for field, value in given.items() if value is not None}
        if "buckets" in changes:
            changes = {"plans": self._plans_with(parse_buckets(changes["buckets"]))} | changes
        return _validated(self.model_dump() | changes, "")

    def _plans_with(self, buckets: tuple[float, ...]) -> Schedules:
        found = {}
        for budget, own in self.plans.items():
            with suppress(InputError):
                symbols = str(Plan(own.symbols, self.buckets).on(buckets))
                found[budget] = replace(own, symbols=symbols)
        return found


def shipped_folder(checkpoint: str) -> Path:
    """The folder of the checkpoint ``shipped:NAME``; InputError where no such one is installed."""
    folder = _engines().joinpath("checkpoints", checkpoint.removeprefix(SHIPPED))
    if not folder.is_dir():
        known = ", ".join(f"{SHIPPED}{path.name}" for path in sorted(folder.parent.glob("*")) if path.is_dir())
        raise InputError(f"Checkpoint {checkpoint!r} is not installed with this package; it ships {known or 'none'}.")
    return folder


def names() -> tuple[str, ...]:
    """Names of all installed recipes, sorted."""
    folder = _engines() / "recipes"
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def load(name: str) -> BuildRecipe:
    """The recipe called `name`; InputError lists all names where there is no such recipe."""
    known = names()
    if name not in known:
        raise InputError(f"Model {name!r} is unknown; there are {', '.join(known)}.{did_you_mean(name, known)}")
    text = (_engines() / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse(text, f"{name}.yaml")


def parse(text: str, where: str) -> BuildRecipe:
    """A recipe from YAML; InputError names `where` and the first field that is wrong."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise InputError(f"{where} holds no recipe; a recipe is a YAML mapping of field names to values.")
    return _validated(data, f"{where}: ")


def _validated(data: dict[Any, Any], prefix: str) -> BuildRecipe:
    try:
        return BuildRecipe.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        field = ".".join(str(part) for part in first["loc"])
        if isinstance(cause, InputError):  # already a sentence that says what is allowed
            inside = f"{field}: " if len(first["loc"]) > 1 else ""
            raise InputError(f"{prefix}{inside}{cause}") from error
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            allowed = ", ".join(sorted(BuildRecipe.model_fields))
            raise InputError(f"{prefix}{field} is no field of a recipe; the fields are {allowed}.") from error
        given = "" if first["type"] == "missing" else f", not {first['input']!r}"
        raise InputError(f"{prefix}{field}: {first['msg'][0].lower()}{first['msg'][1:]}{given}.") from error


def _engines() -> Path:
    """The folder of accelaes_export.engines: package data of an installation, engines/ of an editable one."""
    return Path(str(resources.files("accelaes_export.engines")))
