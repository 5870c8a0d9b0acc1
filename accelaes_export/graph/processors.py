"""The one thing changed in a diffusers model: attention processors that read the cached background.

A processor replaces diffusers' own on one `Attention` module. Projections, norms and output layers stay the
module's; the focus step's state comes in through the block's keyword arguments, so processors hold nothing but
the slot they stand for.
"""

from __future__ import annotations

from typing import Any

import torch

from accelaes_export.graph.state import FocusState


class JointFocusProcessor:
    """MMDiT attention (SD3 family): image and text attend together; dual-attention blocks' image-only one too.

    The text stream is optional: without `encoder_hidden_states` this is plain self-attention over image tokens.
    """

    def __init__(self, slot: int) -> None:
        self.slot = slot

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,  # [B, n, D]
        encoder_hidden_states: torch.Tensor | None = None,  # [B, M, D]
        attention_mask: torch.Tensor | None = None,
        focus: FocusState | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        assert focus is not None, "focus processors only run inside a FocusStep"
        q = _normed(attn.norm_q, _heads(attn.to_q(hidden_states), attn.heads))
        k = _normed(attn.norm_k, _heads(attn.to_k(hidden_states), attn.heads))
        v = _heads(attn.to_v(hidden_states), attn.heads)
        if encoder_hidden_states is None:
            image, _ = focus.attend(self.slot, q, k, v)
            return self._project(attn, image)

        text_q = _normed(attn.norm_added_q, _heads(attn.add_q_proj(encoder_hidden_states), attn.heads))
        text_k = _normed(attn.norm_added_k, _heads(attn.add_k_proj(encoder_hidden_states), attn.heads))
        text_v = _heads(attn.add_v_proj(encoder_hidden_states), attn.heads)
        image, text = focus.attend(self.slot, q, k, v, (text_q, text_k, text_v))
        assert text is not None
        text = text.transpose(1, 2).flatten(2)
        return self._project(attn, image), text if attn.context_pre_only else attn.to_add_out(text)

    @staticmethod
    def _project(attn: Any, image: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = attn.to_out[0](image.transpose(1, 2).flatten(2))
        dropped: torch.Tensor = attn.to_out[1](projected)  # dropout, as diffusers has it
        return dropped


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, tokens, H·hd] to [B, H, tokens, hd]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    normed: torch.Tensor = x if norm is None else norm(x)
    return normed
