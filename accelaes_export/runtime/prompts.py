"""From a pipeline call's prompts to token weights: which text each tokenizer was given, and what its words weigh."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from accelaes_export.manifest import Manifest
from accelaes_export.policies.lexical import LexicalScorer
from accelaes_export.policies.words import Scorer, WordScoring, WordWeights, weigh_words
from accelaes_export.runtime.text import token_weights

# diffusers numbers its prompts as its tokenizers: `prompt_2` goes to `tokenizer_2`, and is `prompt` if not given.
_PROMPT_OF = {"tokenizer": "prompt", "tokenizer_2": "prompt_2", "tokenizer_3": "prompt_3"}


@dataclass(frozen=True)
class Texts:
    """The prompts behind one `encode_prompt` call, one row an image.

    Attributes:
        rows: per image, tokenizer name to prompt; None where only embeddings were given.
        images: b.
    """

    rows: tuple[Mapping[str, str], ...] | None
    images: int
    _embeds: weakref.ref[torch.Tensor]

    @classmethod
    def of_call(cls, given: Mapping[str, Any], embeds: torch.Tensor, pipe: Any) -> Texts | None:
        """From the arguments of `encode_prompt` and the embeddings [b, M, D] it returned; None without a prompt."""
        if given.get("prompt") is None or given.get("prompt_embeds") is not None:
            return None
        first = _listed(given["prompt"])
        prompts = {name: _listed(given.get(source) or first) for name, source in _PROMPT_OF.items()}
        tidy = bool(given.get("clean_caption", False))
        prompts = {name: as_tokenised(pipe, texts, clean_caption=tidy) for name, texts in prompts.items()}
        copies = given.get("num_images_per_prompt") or given.get("num_videos_per_prompt") or 1
        rows = [{name: texts[k] for name, texts in prompts.items()} for k in range(len(first)) for _ in range(copies)]
        return cls(tuple(rows), len(rows), weakref.ref(embeds))

    @classmethod
    def unknown(cls, embeds: torch.Tensor) -> Texts:
        """Embeddings whose prompt nobody told."""
        return cls(None, embeds.shape[0], weakref.ref(embeds))

    def made(self, embeds: torch.Tensor | None) -> bool:
        """Whether these texts are the ones behind `embeds`."""
        return embeds is not None and self._embeds() is embeds


class PromptWeights:
    """Weighs the prompts of a bundle's pipeline with the bundle's scorer and anchors."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._scorer: Scorer | None = None

    def weigh(
        self, pipe: Any, texts: Texts, text_tokens: int, scoring: WordScoring
    ) -> tuple[torch.Tensor, tuple[WordWeights, ...]]:
        """Token weights [b, M] fp32, and the words of every image's prompt.

        Where only embeddings were given there are no words, and every text position weighs the same.
        """
        if texts.rows is None:
            return torch.ones(texts.images, text_tokens), ()
        scorer = self._scorer_of(pipe)
        tokenizers = {name: getattr(pipe, name, None) for segment in self._manifest.text for name in segment.tokenizers}
        known: dict[str, WordWeights] = {}
        rows, words = [], []
        for row in texts.rows:
            for prompt in row.values():
                if prompt not in known:
                    known[prompt] = weigh_words(prompt, scorer, self._manifest.anchors, scoring)
            per_tokenizer = {name: known[prompt] for name, prompt in row.items()}
            rows.append(token_weights(per_tokenizer, tokenizers, self._manifest.text, text_tokens))
            words.append(per_tokenizer["tokenizer"])
        return torch.stack(rows), tuple(words)

    def _scorer_of(self, pipe: Any) -> Scorer:
        if self._scorer is None:
            encoder, tokenizer = getattr(pipe, "text_encoder", None), getattr(pipe, "tokenizer", None)
            if self._manifest.token_scorer == "clip" and encoder is not None and tokenizer is not None:
                from accelaes_export.policies.clip import ClipScorer

                self._scorer = ClipScorer(tokenizer, encoder)
            else:
                self._scorer = LexicalScorer()  # the result says which one was used
        return self._scorer


def as_tokenised(pipe: Any, prompts: list[str], *, clean_caption: bool) -> list[str]:
    """The prompts as the pipeline hands them to its tokenizers."""
    clean = getattr(pipe, "_text_preprocessing", None)
    if clean is not None:  # in small letters, or with captions' debris taken out
        prompts = clean(prompts, clean_caption=clean_caption)
    untangle = getattr(sys.modules[type(pipe).__module__], "prompt_clean", None)
    if untangle is not None:  # video pipelines decode HTML's escapes and join runs of spaces
        prompts = [untangle(prompt) for prompt in prompts]
    return prompts


def _listed(prompt: str | list[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)
