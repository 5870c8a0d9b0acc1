"""The focus step's tensor contract: every input and output of the graph, in order, with its shape.

One `GraphContract` describes one exported graph. The build wing makes it from a backbone, backends compile
profiles from it, the bundle stores it, and the runtime allocates buffers by it, so that a tensor's name and
shape are written down once. Dimensions that vary are letters of the design page:

    B  batch rows, guidance pairs included      n  focus tokens
    M  text tokens                              m  background tokens, N - n
    b  images                                   a  focus tokens whose affinity is asked for: none of them, or all n

There are two forms. In the `token` form only focus tokens go through the network, and what is cached are keys and
values. In the `component` form the residual stream keeps all N tokens, and what is cached are the outputs of
attention and feed-forward parts, one head wide: [B, 1, m, D].

A *layer-wise* step (`GraphContract.layerwise`) is a graph of its own: all N tokens go through the network, and every
part computes a number of them for itself, `n.3.ff`, which its ranking chooses in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from accelaes_export.contract.records import Record
from accelaes_export.policies.layer_schedule import Ranking

Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""How many of something there are, or how large a dimension is: engines count in 32 bits."""

Dimension = (
    Count
    | Literal["B", "b", "n", "m", "M", "a"]
    | Annotated[str, Field(pattern=r"^M-[1-9][0-9]{0,8}$")]
    | Annotated[str, Field(pattern=r"^[nk]\.[0-9]{1,4}\.[a-z0-9]+$")]
)
"""A size, a letter, or "M-34": a text whose first 34 ids have no position in the transformer; "n.3.ff": tokens that a
part computes in a layer-wise step, and "k.3.attn": tokens it makes keys of, all N where it computes any."""
DTypeName = Literal["fp32", "fp16", "bf16", "int64"]

NEW = "'"
"""Behind the name of an output: what the input of that name is at the next step."""

PLACES = "places."
KEYS = "keys."

FOCUS_INDEX = "focus_index"
TOKEN_WEIGHTS = "token_weights"
OBSERVED_INDEX = "observed_index"
HIDDEN_STATES = "hidden_states"
TIMESTEP = "timestep"
BACKGROUND_INDEX = "background_index"
FOCUS_PREDICTION = "focus_prediction"
BACKGROUND_PREDICTION = "background_prediction"
AFFINITY = "affinity"


class TensorSpec(Record):
    """One input or output: its engine tensor name, dtype and shape (an int, or a letter that varies).

    Attributes:
        kind: what its values are: any numbers, a 0/1 mask whose ones come first, or labels below `limit`.
        limit: values lie in [0, limit); None: numbers without bounds, about 1 in size.
        optional: of a mask: whether pipelines may leave it out where it is all ones.
    """

    name: str
    dtype: DTypeName
    shape: tuple[Dimension, ...]
    kind: Literal["real", "mask", "label"] = "real"
    limit: FiniteFloat | None = None
    optional: bool = False

    def sized(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape with every letter replaced by its size in `sizes`, e.g. ``{"B": 2, "n": 72, ...}``."""
        return tuple(d if isinstance(d, int) else _size(d, sizes) for d in self.shape)

    def less(self, letter: str) -> int:
        """How much smaller a size of the shape is than `letter`: 34 of "M-34"; 0 where none is."""
        parts = [_parts(d) for d in self.shape if isinstance(d, str)]
        return max((less for own, less in parts if own == letter), default=0)


def _size(dimension: str, sizes: dict[str, int]) -> int:
    letter, less = _parts(dimension)
    return sizes[letter] - less


def _parts(dimension: str) -> tuple[str, int]:
    letter, _, less = dimension.partition("-")
    return letter, int(less or 0)


def places(label: str) -> str:
    """A part's input whose length is how many tokens it computes: their places in its ranking."""
    return f"{PLACES}{label}"


def keys_of(label: str) -> str:
    """A part's input with the tokens it makes keys of: all or none."""
    return f"{KEYS}{label}"


class CacheEntry(Record):
    """One cached tensor: ``<name>`` is the fresh one among the outputs, ``<name>_bg`` the background's input."""

    name: str  # "cache.3.k"; component form "cache.3.ff"
    heads: Count  # Hkv; component form 1
    head_dim: Count  # hd; component form D


class BlockRange(Record):
    """Blocks `first` to `last` - 1, which a step may leave out, adding what they added when they were last computed.

    Attributes:
        first, last: of the L blocks, in the order they are computed in.
        of: L.
        changes: what the range adds to each stream that goes through it, as a dense step's outputs: the image's, and
            the text's where the blocks carry one and a later block reads it. Inputs of the step without the range.
    """

    first: int
    last: int
    of: Count
    changes: tuple[TensorSpec, ...]

    @property
    def share(self) -> float:
        """Share of the blocks that a step without this range computes."""
        return 1 - (self.last - self.first) / self.of

    @property
    def label(self) -> str:
        """As it is written: "0:12"."""
        return f"{self.first}:{self.last}"


class KeptPart(Record):
    """A part of a block that computes its own share of the tokens in a layer-wise step.

    Attributes:
        layer, name: its output is cached as ``cache.{layer}.{name}``.
        keys: whether it makes keys of the image's tokens for nobody but itself, so that none are made where it
            computes no token.
    """

    layer: int = Field(ge=0)
    name: str
    keys: bool

    @property
    def label(self) -> str:
        """As inputs and schedules name it: "3.ff"."""
        return f"{self.layer}.{self.name}"


class Layerwise(Record):
    """A layer-wise step.

    Attributes:
        ranking: how each part ranks tokens.
        parts: in the order they are computed in.
        state: what it keeps from step to step: its input NAME is the output NAME' of the step before.
    """

    ranking: Ranking
    parts: tuple[KeptPart, ...] = Field(min_length=1)
    state: tuple[TensorSpec, ...] = Field(min_length=1)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(part.label for part in self.parts)


class GraphContract(Record):
    """What goes into one focus step and what comes out.

    Attributes:
        dtype: activations' dtype (focus_index stays int64, affinity is fp32).
        batch: images per call.
        pairs: whether a guided call has two rows an image; pipelines that guide with a second call have one.
        tokens: N, image tokens.
        buckets: n of every bucket that was built, ascending; the last is N (dense).
        text_tokens: M, the text window the recipe asked for.
        dynamic_text: True where a session takes any M, not the window alone.
        text_multiple: what masked texts are padded to a multiple of, so that calls have few different M.
        conditioning: names of the inputs the pipeline's transformer call provides beside latents and timestep.
        inputs, outputs: the tensor table, in the engine's order.
        cache: per attention the K and V entries, in the engine's order.
        ranges: of blocks whose changes the outputs have, so that later steps can leave them out.
        without: the range this graph leaves out; its changes are the last inputs.
        layerwise: the layer-wise step that there is beside this one.
        own_parts: set where this graph is it.
    """

    dtype: DTypeName
    batch: Count
    pairs: bool = True
    tokens: Count
    buckets: tuple[Count, ...]
    text_tokens: int = Field(ge=0, le=2**31 - 1)
    dynamic_text: bool
    text_multiple: Count = 1
    conditioning: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cache: tuple[CacheEntry, ...]
    ranges: tuple[BlockRange, ...] = ()
    without: BlockRange | None = None
    layerwise: Layerwise | None = None
    own_parts: Layerwise | None = None

    @property
    def rows(self) -> int:
        """The largest B: images per call, twice where guidance pairs them."""
        return 2 * self.batch if self.pairs else self.batch

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the blocks that a step without each range computes, which a plan's digits stand for."""
        return tuple(blocks.share for blocks in self.ranges)

    @property
    def text_input(self) -> str | None:
        """The first conditioning input with a text axis, [B, M, ...]; None for models without text."""
        specs = {spec.name: spec for spec in self.inputs}
        return next((name for name in self.conditioning if specs[name].shape[1:2] == ("M",)), None)

    @property
    def has(self) -> frozenset[str]:
        """Names of all inputs and outputs, for those not every graph has."""
        return frozenset(spec.name for spec in (*self.inputs, *self.outputs))

    def sizes(
        self,
        n: int,
        B: int | None = None,
        M: int | None = None,
        *,
        observed: bool = True,
        counts: Sequence[int] | None = None,
    ) -> dict[str, int]:
        """The letters' sizes for a step with `n` focus tokens; B defaults to `rows` and M to the window.

        Args:
            counts: of a layer-wise step: how many tokens each part computes, in their order; all compute n by default.
        """
        parts = self.own_parts.parts if self.own_parts is not None else ()
        own = dict(zip(parts, [n] * len(parts) if counts is None else counts, strict=True))
        return {
            "B": self.rows if B is None else B,
            "n": n,
            "m": self.tokens - n,
            "M": self.text_tokens if M is None else M,
            "a": n if observed else 0,
            **{f"n.{part.label}": count for part, count in own.items()},
            **{f"k.{part.label}": self.tokens if count else 0 for part, count in own.items()},
        }

    @property
    def masks_text(self) -> bool:
        """Whether a text may be padded: the model is told where it ends."""
        return any(spec.kind == "mask" for spec in self.inputs)

    def window(self, M: int) -> int:
        """The text length a call with M text tokens runs at: the whole window where there is no other."""
        if not self.masks_text:
            return M
        return self.text_multiple * -(-M // self.text_multiple) if self.dynamic_text else max(M, self.text_tokens)

    def input_shapes(self, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
        """Name to concrete shape of every input."""
        return {spec.name: spec.sized(sizes) for spec in self.inputs}

    def output_shapes(self, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
        """Name to concrete shape of every output."""
        return {spec.name: spec.sized(sizes) for spec in self.outputs}
