"""The focus step's tensor contract: every input and output of the graph, in order, with its shape.

One `GraphContract` describes one exported graph. The build wing makes it from a backbone, backends compile
profiles from it, the bundle stores it, and the runtime allocates buffers by it, so that a tensor's name and
shape are written down once. Dimensions that vary are letters of the design page:

    B  batch rows, guidance pairs included      n  focus tokens
    M  text tokens                              m  background tokens, N - n
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Dimension = int | Literal["B", "n", "m", "M"]
DTypeName = Literal["fp32", "fp16", "bf16", "int64"]

FOCUS_INDEX = "focus_index"
TOKEN_WEIGHTS = "token_weights"
HIDDEN_STATES = "hidden_states"
TIMESTEP = "timestep"
FOCUS_PREDICTION = "focus_prediction"
AFFINITY = "affinity"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Frozen):
    """One input or output: its engine tensor name, dtype and shape (an int, or a letter that varies)."""

    name: str
    dtype: DTypeName
    shape: tuple[Dimension, ...]

    def sized(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape with every letter replaced by its size in `sizes`, e.g. ``{"B": 2, "n": 72, ...}``."""
        return tuple(d if isinstance(d, int) else sizes[d] for d in self.shape)


class CacheEntry(_Frozen):
    """One cached tensor: ``<name>`` is the fresh one among the outputs, ``<name>_bg`` the background's input."""

    name: str  # "cache.3.k"
    heads: int  # Hkv
    head_dim: int  # hd


class GraphContract(_Frozen):
    """What goes into one focus step and what comes out.

    Attributes:
        dtype: activations' dtype (focus_index stays int64, affinity is fp32).
        batch: images per call; B runs from 1 to 2 * batch, because guidance doubles an image's rows.
        tokens: N, image tokens.
        buckets: n of every bucket that was built, ascending; the last is N (dense).
        text_tokens: M, the text window the recipe asked for.
        dynamic_text: True where a session takes any M, not the window alone.
        conditioning: names of the inputs the pipeline's transformer call provides beside latents and timestep.
        inputs, outputs: the tensor table, in the engine's order.
        cache: per attention the K and V entries, in the engine's order.
    """

    dtype: DTypeName
    batch: int
    tokens: int
    buckets: tuple[int, ...]
    text_tokens: int
    dynamic_text: bool
    conditioning: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cache: tuple[CacheEntry, ...]

    def sizes(self, n: int, B: int | None = None, M: int | None = None) -> dict[str, int]:
        """The letters' sizes for a step with `n` focus tokens; B defaults to 2 * batch and M to the window."""
        return {
            "B": 2 * self.batch if B is None else B,
            "n": n,
            "m": self.tokens - n,
            "M": self.text_tokens if M is None else M,
        }

    def input_shapes(self, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
        """Name to concrete shape of every input."""
        return {spec.name: spec.sized(sizes) for spec in self.inputs}

    def output_shapes(self, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
        """Name to concrete shape of every output."""
        return {spec.name: spec.sized(sizes) for spec in self.outputs}
