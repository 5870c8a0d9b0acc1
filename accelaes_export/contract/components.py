"""Components: what a pipeline has beside its transformer, in a bundle that needs no checkpoint to draw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, FiniteFloat

from accelaes_export.contract.presets import GraphRecord
from accelaes_export.contract.records import Record
from accelaes_export.contract.tensors import Count
from accelaes_export.errors import InputError

ComponentName = Literal["text", "vae", "tokenizers"]
Cleaning = Literal["none", "lower", "other"]
"""What pipelines do to a prompt before it is tokenised: nothing, small letters without blanks at the ends, or more."""
COMPONENTS: tuple[ComponentName, ...] = ("text", "vae", "tokenizers")
"""What a build can be asked for."""

HIDDEN = "hidden_states."
"""Before an output's name, where a number follows: the hidden states of that layer, as transformers counts them."""
INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
IMAGE = "image"
SAMPLE = "sample"
MOMENTS = "moments"
LATENTS = "latents"
Z = "z"


class TokenizerFiles(Record):
    """A tokenizer: transformers' class, and its files in the bundle, all in one folder.

    Attributes:
        portable: a file beside them for runtimes without transformers: the same tokenizer as the tokenizers library
            writes it (tokenizer.json), which cuts and pads as the pipeline does. None for a tokenizer that has no such
            form, or whose length nothing tells.
    """

    kind: str
    files: tuple[str, ...] = Field(min_length=1)
    portable: str | None = None

    @property
    def folder(self) -> str:
        """Of the files, in the bundle."""
        return self.files[0].rpartition("/")[0]


class TextEncoder(Record):
    """A text encoder as a graph: `input_ids` and `attention_mask` [b, M] int64 to what pipelines read of its output.

    Attributes:
        kind: transformers' class. Outputs are called as there, the one that `output[0]` is first.
        config: its own, as data.
        weights_sha256: over config and safetensors files.
        dtype: it computes in; its outputs too.
        tokenizer: the pipeline's attribute its ids come from.
        length: ids of a prompt, at most.
        padded_to: prompts are padded to a multiple of so many ids; None: to `length`.
        masked: whether pipelines mask the padding when they encode a prompt; otherwise it is encoded as well.
        rows: texts a call, at most.
    """

    kind: str
    config: dict[str, Any]
    weights_sha256: str
    dtype: Literal["fp32", "fp16", "bf16"]
    tokenizer: str
    masked: bool
    length: Count
    padded_to: Count | None = None
    rows: Count
    graph: GraphRecord


class Autoencoder(Record):
    """The VAE, as much of it as doesn't depend on a picture's size; `weights_sha256` as of a text encoder.

    Attributes:
        attributes: what pipelines read of it beside its config, as plain data.
        buffers: the same, of vectors of numbers.
    """

    kind: str
    config: dict[str, Any]
    weights_sha256: str
    dtype: Literal["fp32", "fp16", "bf16"]
    attributes: dict[str, Any] = Field(default_factory=dict)
    buffers: dict[str, tuple[FiniteFloat, ...]] = Field(default_factory=dict)


class AutoencoderGraphs(Record):
    """The VAE for one size of picture.

    Attributes:
        latents: what the pipeline denoises, as the engine has it, to the decoder's `z` [b, C, Hl, Wl].
        decoder: `z` to `sample` [b, 3, H, W], about -1 to 1, and `image` [b, H, W, 3], whole numbers from 0 to 255 (in
            fp32: TensorRT has no bytes).
        encoder: `sample` to `moments` [b, 2C, Hl, Wl], mean and log of the variance.

    VAEs of videos have a further axis for frames: `z` and `moments` [b, C, Fl, Hl, Wl], `sample` [b, 3, F, H, W] and,
    where there are frames in the latents, `image` [b, F, H, W, 3].
        rows: images a call, at most.
    """

    latents: GraphRecord
    decoder: GraphRecord
    encoder: GraphRecord
    rows: Count


class Components(Record):
    """What of a pipeline a bundle has beside the transformer.

    Attributes:
        pipeline: its model_index.json.
        scheduler: its config.
        tokenizers, encoders: by the pipeline's attribute.
        conditioning: the encoders' outputs (`text_encoder.last_hidden_state`) and tokenizers' masks
            (`tokenizer.attention_mask`) to the engine's conditioning by its names, b rows each; None without encoders.
        vae: None where the bundle was built without.
        cleaning: what the pipeline does to a prompt before it is tokenised; see `Cleaning`.
        sha256: of all of this and the VAE's graphs (`digest`): a number changed by hand would draw other pictures.
    """

    pipeline: dict[str, Any]
    scheduler: dict[str, Any]
    tokenizers: dict[str, TokenizerFiles] = Field(default_factory=dict)
    encoders: dict[str, TextEncoder] = Field(default_factory=dict)
    conditioning: GraphRecord | None = None
    vae: Autoencoder | None = None
    cleaning: Cleaning = "none"
    sha256: str = ""

    def sealed(self, graphs: AutoencoderGraphs | None) -> Components:
        """The same with its own `sha256`, every field written out."""
        written = Components.model_validate(self.model_dump(mode="json"))
        own = None if graphs is None else AutoencoderGraphs.model_validate(graphs.model_dump(mode="json"))
        return written.model_copy(update={"sha256": written.digest(own)})

    def digest(self, graphs: AutoencoderGraphs | None) -> str:
        """Hex SHA-256 of everything but `sha256`, with the VAE's graphs of one size.

        Of what was written: a field that a later release adds isn't in it.
        """
        said = (
            self.model_dump(mode="json", exclude={"sha256"}, exclude_unset=True),
            None if graphs is None else graphs.model_dump(mode="json", exclude_unset=True),
        )
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def lacking(self) -> tuple[str, ...]:
        """The pipeline's components that it has and the bundle hasn't, its transformer aside."""
        there = {"transformer", "scheduler", *self.tokenizers, *self.encoders, *(["vae"] if self.vae else [])}
        return tuple(name for name in component_classes(self.pipeline) if name not in there)


def parse_components(given: object) -> object:
    """Names from "text,vae,tokenizers", "all" or "none"; anything else is returned as it is.

    InputError for an unknown one.
    """
    if isinstance(given, str):
        written = given.strip().lower()
        if written in ("all", "none"):
            return COMPONENTS if written == "all" else ()
        given = tuple(item.strip().lower() for item in given.split(","))
    if not isinstance(given, (list, tuple)):
        return given
    for name in given:
        if name not in COMPONENTS:
            raise InputError(f"Component {name!r} is unknown; give some of {', '.join(COMPONENTS)}, or all, or none.")
    return tuple(name for name in COMPONENTS if name in given)


def component_classes(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The components of a model_index.json: attribute to library and class; those that were saved as null are left out.

    Entries that aren't components, such as class names or switches, are left out too.
    """
    return {
        name: (entry[0], entry[1])
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
    }


def component_files(components: Components | None, vae: AutoencoderGraphs | None) -> Iterator[str]:
    """The files of all of them in the bundle."""
    if components is not None:
        for tokenizer in components.tokenizers.values():
            yield from tokenizer.files
            if tokenizer.portable is not None:
                yield tokenizer.portable
        for encoder in components.encoders.values():
            yield from encoder.graph.files
        if components.conditioning is not None:
            yield from components.conditioning.files
    if vae is not None:
        for graph in (vae.latents, vae.decoder, vae.encoder):
            yield from graph.files
