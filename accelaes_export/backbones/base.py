"""What a DiT family's backbone says: only what is special about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from accelaes_export.contract.components import Cleaning
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.tensors import TensorSpec
from accelaes_export.errors import InputError

if TYPE_CHECKING:
    import torch


class Focus(Protocol):
    """The step under way, as a backbone and its attention processors see it.

    The tokens that go through the network are the s = n focus tokens (`token` form), or all s = N, focus first
    (`component` form); n of them are computed. In a layer-wise step (graph/layerwise.py) all go through it in their own
    order, and n is another number in every part.
    """

    @property
    def text_tokens(self) -> int:
        """M of this step."""

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, N, D] of all tokens to [B, s, D] of those that go through the network."""

    def rows(self, table: torch.Tensor) -> torch.Tensor:
        """A table [N, d], one row a token, to [B, s, d]."""

    def queries(self, tokens: torch.Tensor, *, text_first: bool = False) -> torch.Tensor:
        """[B, s, ...] to [B, n, ...], the tokens computed now; with `text_first` behind M text tokens, which stay."""

    def keys(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, s, ...] to the tokens that an attention of the image to itself makes keys of: all, or none where it
        computes no token (layer-wise steps)."""

    def attend(
        self,
        slot: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        text: int = 0,
        text_first: bool = False,
        scale: float | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention over this step's keys and the cached background's: [B, H, nq, hd].

        Args:
            slot: which cached attention this is.
            q: [B, H, n (+ text), hd]; k, v: [B, Hkv, s (+ text), hd], after norm and rotary embedding.
            text: how many of the tokens are text, which stands behind the image tokens unless `text_first`.
            scale: on the scores; hd ** -0.5 if None.
            bias: [B, text] added to the scores of the text's keys, or None.
        """

    def observe(self, layer: int, q: torch.Tensor, text_k: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Take in how the image attends to the text, for the affinity (Eq. 6), if `layer` is one of the chosen.

        Args:
            q: [B, H, n, hd] queries of the focus tokens; text_k: [B, Hkv, M, hd] keys of the text.
            bias: [B, M] added to the scores, or None.
        """


Processor = Callable[..., Any]


@dataclass(frozen=True)
class AttentionSite:
    """One attention module that gets a focus processor.

    Attributes:
        module: diffusers' attention module; it has `set_processor` and `processor`.
        layer: its block's index.
        processor: makes the processor, from the focus, the slot (-1 where nothing is cached) and the layer.
        heads, head_dim: Hkv and hd of its keys and values.
        cached: whether its keys come from image tokens, so that the background's are cached (token form).
        suffix: of the cache's names, where a block has two such modules.
        reads_text: whether the processor calls `observe`.
    """

    module: Any
    layer: int
    processor: Callable[[Focus, int, int], Processor]
    heads: int
    head_dim: int
    cached: bool = True
    suffix: str = ""
    reads_text: bool = False


@dataclass(frozen=True)
class PartSite:
    """One part of a block that the `component` form computes for focus tokens only.

    Attributes:
        module: called with [B, s, ·] image tokens, behind M text tokens if `text_first`.
        layer, name: the cached output is ``cache.{layer}.{name}``; no name: nothing is cached here.
        width: D of its output.
        narrows: whether its input still has all tokens.
        text_first: whether the text stands before the image tokens in its input.
    """

    module: Any
    layer: int
    name: str
    width: int
    narrows: bool = False
    text_first: bool = False


class Backbone(ABC):
    """A backbone from one diffusers transformer class to the focus step. Stateless.

    Models are `Any`: diffusers' modules declare none of their parts to a type checker.

    Attributes:
        family: its name in recipes and manifests.
        class_name: diffusers' class, as in the checkpoint's transformer/config.json.
        pipelines: diffusers pipelines the drop-in serves.
        signature: the transformer call's leading parameters, in diffusers' order.
        guidance: how these pipelines guide.
        timestep_limit: timesteps lie in [0, timestep_limit].
        built_in: arguments of the call that say what the graph has built in.
        forms: of the focus step that make sense for the family.
        block_lists: the model's lists of blocks, in the order they are computed in.
        read_parts: of the first block, which `forward` reads beside calling it.
        text_padded_to: pipelines pad prompts to a multiple of so many tokens; None: to their own window.
        encoded_text: positions of a text that pipelines encode before they cut it; None: as many as the engine has.
        masks_padding: whether pipelines mask the padding when they encode a prompt.
        cleaning: what pipelines do to a prompt before it is tokenised, as they are called by default.
        text_stream: whether blocks carry the text along and return it, before the image (joint models).
    """

    family: str
    class_name: str
    pipelines: tuple[str, ...]
    signature: tuple[str, ...]
    guidance: Guidance
    timestep_limit: float = 1000.0
    text_padded_to: int | None = None
    encoded_text: int | None = None
    masks_padding: bool = False
    cleaning: Cleaning = "none"
    built_in: tuple[str, ...] = ()
    forms: tuple[str, ...] = ("token", "component")
    block_lists: tuple[str, ...] = ("transformer_blocks",)
    read_parts: tuple[str, ...] = ()
    text_stream: bool = False

    @abstractmethod
    def latents(
        self, config: Mapping[str, Any], resolution: tuple[int, int], vae_scale: int, frames: int | None = None
    ) -> Latents:
        """Geometry for a (height, width) in pixels; InputError where patch size or position table forbid it."""

    @abstractmethod
    def conditioning(self, config: Mapping[str, Any], dtype: str) -> tuple[TensorSpec, ...]:
        """The inputs beside latents and timestep, with letters B and M in their shapes; InputError for a config
        with inputs that can't be."""

    def rotations(self, config: Mapping[str, Any], latents: Latents) -> tuple[TensorSpec, ...]:
        """Further inputs, of all rows alike: rotation tables that the pipeline changes during a run."""
        return ()

    @abstractmethod
    def sites(self, model: Any) -> Sequence[AttentionSite | PartSite]:
        """Every module that the focus step touches, block by block; models may be on the meta device."""

    def tables(self, model: Any, latents: Latents) -> Mapping[str, torch.Tensor]:
        """Constants of this geometry that `forward` reads, one row a token where they say so: made once, in fp32."""
        return {}

    @abstractmethod
    def forward(
        self, model: Any, inputs: Mapping[str, torch.Tensor], tables: Mapping[str, torch.Tensor], focus: Focus
    ) -> torch.Tensor:
        """The transformer over the focus tokens: [B, s, w], in the order of patches.py."""

    def reference(self, model: Any, inputs: Mapping[str, torch.Tensor], latents: Latents) -> torch.Tensor:
        """What the unmodified diffusers model makes of the same inputs: its output, before patchify."""
        sample: torch.Tensor = model(**inputs, return_dict=False)[0]
        return sample

    def text_conditioning(
        self, encoded: Mapping[str, torch.Tensor], config: Mapping[str, Any], length: int
    ) -> dict[str, torch.Tensor]:
        """The conditioning that the text encoders make, as the family's pipelines put it together.

        Args:
            encoded: their outputs and their tokenizers' masks, as `text_encoder.last_hidden_state` and
                `tokenizer.attention_mask`, without ids that have no position in the transformer; nothing of encoders
                that a checkpoint was saved without.
            length: of the last run of text positions.

        Raises:
            InputError: a family whose text encoders can't be part of a bundle.
        """
        raise InputError(
            f"The text encoders of {self.family} can't be part of a bundle in this release; leave text out of "
            "--components: run then reads them from the checkpoint."
        )

    def decoder_latents(self, latents: torch.Tensor, geometry: Latents, vae: Any) -> torch.Tensor:
        """Denoised latents as the VAE's decoder takes them: [b, C, Hl, Wl], or [b, C, Fl, Hl, Wl].

        Args:
            vae: the model, whose config and buffers may be read.
        """
        return latents / vae.config["scaling_factor"] + (vae.config.get("shift_factor") or 0.0)

    def fixed(self, config: Mapping[str, Any], latents: Latents) -> dict[str, Any]:
        """Arguments of the call that the graph has one value of."""
        return {}

    def attributes(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What pipelines read from their transformer beside its config, as plain data."""
        return {}
