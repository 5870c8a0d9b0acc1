"""What one focus step carries through the blocks: its focus tokens, the cached background, what the blocks hand out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from accelaes_export.graph.attention import sparse_query_attention


class FocusState:
    """Created anew for every call of the focus step, so attention processors stay stateless.

    Args:
        focus_index: [B, n] int64, ascending: the tokens computed in this step.
        token_weights: [B, M] fp32: α of AesMask, zero for the unconditional half.
        background: per attention slot the pair (k_bg, v_bg), each [B, Hkv, m, hd].
        affinity_slots: the slots whose attention to the text is averaged into the affinity.
    """

    def __init__(
        self,
        focus_index: torch.Tensor,
        token_weights: torch.Tensor,
        background: Sequence[tuple[torch.Tensor, torch.Tensor]],
        affinity_slots: frozenset[int],
    ) -> None:
        self.focus_index = focus_index
        self.token_weights = token_weights
        self.background = background
        self.affinity_slots = affinity_slots
        self._fresh: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._affinities: list[torch.Tensor] = []

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, N, D] of all tokens to [B, n, D] of the focus tokens."""
        return torch.gather(tokens, 1, self.focus_index[..., None].expand(-1, -1, tokens.shape[-1]))

    def attend(
        self,
        slot: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        text: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attention of the focus tokens (and the text, in joint models) over fresh and cached keys.

        Args:
            slot: index of this attention in the contract's cache table.
            q: [B, H, n, hd]; k, v: [B, Hkv, n, hd], after norm and rotary embedding.
            text: the text stream's (q, k, v), [B, H, M, hd], or None for image-only attention.

        Returns:
            The image part [B, H, n, hd] and the text part [B, H, M, hd] (None without text).
        """
        self._fresh[slot] = (k, v)
        n, scale = q.shape[2], q.shape[3] ** -0.5
        if text is not None:
            text_q, text_k, text_v = text
            if slot in self.affinity_slots:
                self._affinities.append(self._affinity(q, text_k, scale))
            # The image comes before the text, as in diffusers, so that n = N is the same sum to the last bit.
            q = torch.cat([q, text_q], dim=2)
            k = torch.cat([k, text_k], dim=2)
            v = torch.cat([v, text_v], dim=2)
        out = sparse_query_attention(q, k, v, *self.background[slot], scale)
        return (out, None) if text is None else (out[:, :, :n], out[:, :, n:])

    def _affinity(self, q: torch.Tensor, text_k: torch.Tensor, scale: float) -> torch.Tensor:
        """Eq. 6 for one joint attention, [B, n]: mean over heads of Σ_j α_j A[i, j], softmax over the text alone."""
        scores = torch.matmul(q, text_k.transpose(-1, -2)).float() * scale  # [B, H, n, M]
        weighted = torch.softmax(scores, dim=-1) * self.token_weights[:, None, None, :]
        return weighted.sum(dim=-1).mean(dim=1)

    @property
    def affinity(self) -> torch.Tensor:
        """[B, n] fp32, the mean over the chosen layers."""
        return torch.stack(self._affinities).mean(dim=0)

    @property
    def fresh(self) -> list[torch.Tensor]:
        """Fresh k, v of every slot in order, each [B, Hkv, n, hd]."""
        return [tensor for slot in range(len(self.background)) for tensor in self._fresh[slot]]
