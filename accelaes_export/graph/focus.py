"""What one focus step carries through the blocks, in either form.

Processors and hooks are installed once and hold the focus; `begin` gives it a step's tensors. A focus belongs to
one FocusStep and serves one call at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from accelaes_export.contract.tensors import BACKGROUND_INDEX, FOCUS_INDEX, HIDDEN_STATES, OBSERVED_INDEX, TOKEN_WEIGHTS
from accelaes_export.plugins.sparse_query_attention.torch_operator import sparse_query_attention


class TokenFocus:
    """Only focus tokens go through the network; attention reads the background's cached keys and values.

    Args:
        cache: names of the cached tensors, keys and values by turns.
        affinity_layers: layers whose attention to the text makes the affinity.
    """

    def __init__(self, cache: Sequence[str], affinity_layers: Sequence[int]) -> None:
        self._names = tuple(cache)
        self._layers = frozenset(affinity_layers)

    def begin(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Take a step's inputs by name; what the step before left is dropped."""
        self._index = inputs[FOCUS_INDEX]  # [B, n]
        self._weights = inputs.get(TOKEN_WEIGHTS)  # [B, M]
        self._observed = inputs.get(OBSERVED_INDEX)  # [B, a], places among the focus tokens
        self._background = [inputs[f"{name}_bg"] for name in self._names]
        self._fresh: list[torch.Tensor | None] = [None] * len(self._names)
        self._observations: list[torch.Tensor] = []

    @property
    def text_tokens(self) -> int:
        """M."""
        return 0 if self._weights is None else self._weights.shape[1]

    @property
    def order(self) -> torch.Tensor:
        """[B, s]: the tokens that go through the network."""
        return self._index

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, N, D] to [B, s, D]."""
        return torch.gather(tokens, 1, self.order[..., None].expand(-1, -1, tokens.shape[-1]))

    def rows(self, table: torch.Tensor) -> torch.Tensor:
        """[N, d] to [B, s, d]."""
        return table[self.order]

    def queries(self, tokens: torch.Tensor, *, text_first: bool = False) -> torch.Tensor:
        """All of them: every token that is here is computed."""
        return tokens

    def keys(self, tokens: torch.Tensor) -> torch.Tensor:
        """All of them."""
        return tokens

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
        """See backbones.base.Focus."""
        k_bg, v_bg = self._background_of(slot, k, v, slice(text, None) if text_first else slice(k.shape[2] - text))
        scale = q.shape[3] ** -0.5 if scale is None else scale
        mask = None if bias is None else _over_keys(bias, q, k, k_bg, text_first)
        return self.operator(q, k, v, k_bg, v_bg, scale, mask)

    operator = staticmethod(sparse_query_attention)
    """Every attention that reads cached keys, or could."""

    def _background_of(
        self, slot: int, k: torch.Tensor, v: torch.Tensor, image: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the tokens that aren't here; `image` of the fresh ones is to be cached."""
        self._fresh[2 * slot], self._fresh[2 * slot + 1] = k[:, :, image], v[:, :, image]
        return self._background[2 * slot], self._background[2 * slot + 1]

    def observe(self, layer: int, q: torch.Tensor, text_k: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Eq. 6 for one layer, head by head: Σ_j α_j A[i, j], A the softmax over the text alone (Eq. 2)."""
        if layer not in self._layers:
            return
        assert self._weights is not None, "a layer that reads text is in a model with text"
        if self._observed is not None:  # graphs before version 3 observe every token at every step
            q = q.gather(2, self._observed[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))  # [B, H, a, hd]
        of_text = attention_to_text(q, text_k, bias)
        self._observations.append(torch.matmul(of_text, self._weights[:, None, :, None]).squeeze(3))  # [B, H, a]

    @property
    def affinity(self) -> torch.Tensor:
        """[B, a] fp32, the mean over the chosen layers and their heads.

        Sums of it are products with a vector: of no tokens (a = 0) ONNX Runtime's ReduceSum keeps the axis summed over.
        """
        heads = torch.cat(self._observations, dim=1)
        share = heads.new_full((heads.shape[1], 1), 1 / heads.shape[1])
        return torch.matmul(heads.transpose(1, 2), share).squeeze(2)

    @property
    def fresh(self) -> list[torch.Tensor]:
        """What is to be cached of this step's tokens, in the order of the names: [B, Hkv, n, hd]."""
        return [tensor for tensor in self._fresh if tensor is not None]


class ComponentFocus(TokenFocus):
    """All tokens go through the network, focus first; the background's part outputs are the cached ones (Eq. 8-10).

    Keys and values are made of all tokens; queries, attention, projections and feed-forward only of focus tokens.
    """

    def begin(self, inputs: Mapping[str, torch.Tensor]) -> None:
        super().begin(inputs)
        self._all = torch.cat([self._index, inputs[BACKGROUND_INDEX]], dim=1)

    @property
    def order(self) -> torch.Tensor:
        return self._all

    def queries(self, tokens: torch.Tensor, *, text_first: bool = False) -> torch.Tensor:
        text = self.text_tokens if text_first else 0
        return tokens[:, : text + self._index.shape[1]]

    def _background_of(
        self, slot: int, k: torch.Tensor, v: torch.Tensor, image: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return k[:, :, :0], v[:, :, :0]  # keys and values are of all tokens already

    def complete(self, slot: int, computed: torch.Tensor, *, text_first: bool = False) -> torch.Tensor:
        """A part's output [B, (M +) n, D] with the background's cached rows behind it: [B, (M +) N, D]."""
        self._fresh[slot] = computed[:, self.text_tokens if text_first else 0 :].unsqueeze(1)
        return torch.cat([computed, self._background[slot].squeeze(1)], dim=1)


class WholeFocus(TokenFocus):
    """All tokens in their own order, for a graph that has no other steps: nothing is gathered, cached or observed.

    Args:
        text: the input with a text axis, [B, M, ...]; None for models without text.
    """

    def __init__(self, text: str | None) -> None:
        super().__init__((), ())
        self._text = text

    def begin(self, inputs: Mapping[str, torch.Tensor]) -> None:
        self._rows = inputs[HIDDEN_STATES].shape[0]
        self._text_tokens = 0 if self._text is None else inputs[self._text].shape[1]

    @property
    def text_tokens(self) -> int:
        return self._text_tokens

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def rows(self, table: torch.Tensor) -> torch.Tensor:
        return table.expand(self._rows, *table.shape)

    def _background_of(
        self, slot: int, k: torch.Tensor, v: torch.Tensor, image: slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return k[:, :, :0], v[:, :, :0]

    def observe(self, layer: int, q: torch.Tensor, text_k: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Nobody asks: a step that leaves blocks out makes no mask."""

    @property
    def fresh(self) -> list[torch.Tensor]:
        return []


def attention_to_text(q: torch.Tensor, text_k: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A [B, H, n, M] fp32: the softmax over the text alone (Eq. 2).

    Args:
        q: [B, H, n, hd]; text_k: [B, Hkv, M, hd].
        bias: [B, M] added to the scores, or None.
    """
    H = q.shape[1]
    if H != text_k.shape[1]:
        text_k = text_k.index_select(1, torch.arange(H, device=text_k.device) // (H // text_k.shape[1]))
    scores = torch.matmul(q, text_k.transpose(-1, -2)).float() * q.shape[3] ** -0.5
    if bias is not None:
        scores = scores + bias[:, None, None, :].float()
    return torch.softmax(scores, dim=-1)


def _over_keys(
    bias: torch.Tensor, q: torch.Tensor, k: torch.Tensor, k_bg: torch.Tensor, text_first: bool
) -> torch.Tensor:
    """The text's bias [B, M] with zeros for the image, [B, 1, nq, nk + m]: ONNX Runtime wants a row a query."""
    image, background = k.shape[2] - bias.shape[1], k_bg.shape[2]
    around = (0, image + background) if text_first else (image, background)
    return torch.nn.functional.pad(bias, around)[:, None, None].expand(-1, -1, q.shape[2], -1)
