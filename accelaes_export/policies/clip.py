"""The CLIP scorer: cosine similarity between a word and every anchor in a CLIP text encoder's space (Eq. 4-5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from accelaes_export.policies.lexical import anchor_matches
from accelaes_export.policies.words import ScorerName, Word

_ROWS = 64  # texts embedded at once: a prompt's words or the 34 anchors in one go, long prompts in a few


class ClipScorer:
    """α = max over anchors of the cosine between the word's and the anchor's embedding.

    A text's embedding is the mean of its content tokens' last hidden states (begin, end and padding left out),
    L2-normalised, in fp32 whatever the encoder's own dtype. Words are embedded one by one, so that α of a word
    doesn't depend on its neighbours. Words that together spell an anchor of several words score 1: the anchor would be
    compared with itself. Anchors are embedded once for each anchor list and kept.

    Args:
        tokenizer: a CLIP tokenizer, as the pipeline holds it.
        text_encoder: transformers' CLIPTextModel or CLIPTextModelWithProjection; it stays on its device.
    """

    name: ScorerName = "clip"

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder
        self._anchors: dict[tuple[str, ...], torch.Tensor] = {}

    def score(self, prompt: str, words: Sequence[Word], anchors: Sequence[str]) -> tuple[float, ...]:
        """α of every word of `words`; a word the tokenizer leaves nothing of scores 0."""
        if not words:
            return ()
        listed = tuple(anchors)
        if listed not in self._anchors:
            self._anchors[listed] = self.embed(listed)
        texts = tuple(dict.fromkeys(word.text for word in words))
        similarity = self.embed(texts) @ self._anchors[listed].T  # [words, anchors], Eq. 4
        alpha = dict(zip(texts, similarity.amax(dim=1).tolist(), strict=True))  # Eq. 5
        spelled = anchor_matches(words, [anchor for anchor in listed if len(anchor.split()) > 1])
        return tuple(max(alpha[word.text], exact) for word, exact in zip(words, spelled, strict=True))

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [texts, D] fp32 on the encoder's device; zeros for a text without content tokens."""
        return torch.cat([self._embed(texts[i : i + _ROWS]) for i in range(0, len(texts), _ROWS)])

    def _embed(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, return_special_tokens_mask=True, return_tensors="pt"
        )
        device = next(self._text_encoder.parameters()).device
        states = self._text_encoder(
            input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
        ).last_hidden_state.to(torch.float32)  # [texts, tokens, D]
        content = ((1 - tokens["special_tokens_mask"]) * tokens["attention_mask"]).to(device).unsqueeze(-1)
        mean = (states * content).sum(dim=1) / content.sum(dim=1).clamp(min=1)
        return torch.nn.functional.normalize(mean, dim=1)
