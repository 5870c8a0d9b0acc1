"""Which prompts a call is about, and what their words weigh.

Prompts are known where they were given: to the pipeline's call, to its `encode_prompt` before (whose results are
recognised by what is in them, whoever copied, joined or stored them since), or by `accelaes_export.words`. Anywhere
else they are unknown, and nothing is guessed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from accelaes_export.contract.manifest import Manifest
from accelaes_export.errors import InputError
from accelaes_export.policies.lexical import LexicalScorer
from accelaes_export.policies.words import Scorer, WordScoring, WordWeights, weigh_words
from accelaes_export.runtime.text import PlacedText

# diffusers numbers its prompts as its tokenizers: `prompt_2` goes to `tokenizer_2`, and is `prompt` if not given.
PROMPT_OF = {"tokenizer": "prompt", "tokenizer_2": "prompt_2", "tokenizer_3": "prompt_3"}

Row = Mapping[str, str]
"""Of one image, tokenizer name to prompt."""

_REMEMBERED = 256  # encoded prompts, a few kilobytes each
_SAMPLED_TOKENS, _SAMPLED_CHANNELS = 64, 8


def rows_of(arguments: Mapping[str, Any], pipe: Any) -> tuple[Row, ...]:
    """The prompts among a call's arguments, a row each; empty where it has none."""
    if arguments.get("prompt") is None:
        return ()
    first = _listed(arguments["prompt"])
    prompts = {name: _listed(arguments.get(source) or first) for name, source in PROMPT_OF.items()}
    tidy = bool(arguments.get("clean_caption", False))
    prompts = {name: as_tokenised(pipe, texts, clean_caption=tidy) for name, texts in prompts.items()}
    return tuple({name: texts[k % len(texts)] for name, texts in prompts.items()} for k in range(len(first)))


def repeated(rows: Sequence[Row], images: int) -> tuple[Row, ...]:
    """A row an image, each prompt's images together, as pipelines have them; empty where the numbers don't fit."""
    copies, rest = divmod(images, len(rows)) if rows else (0, 1)
    return () if rest else tuple(row for row in rows for _ in range(copies))


class EncodedPrompts:
    """Remembers what was encoded, by a sample of the embeddings."""

    def __init__(self) -> None:
        self._known: list[tuple[torch.Tensor, tuple[Row, ...]]] = []

    def remember(self, embeds: torch.Tensor, rows: Sequence[Row]) -> None:
        """Embeddings [b, M, D] of these prompts; the device isn't waited for."""
        rows = repeated(rows, embeds.shape[0])
        if rows:
            self._known = [*self._known, (_sample(embeds), rows)][-_REMEMBERED:]

    def rows(self, embeds: torch.Tensor) -> tuple[Row, ...]:
        """The prompts behind [b, M, D]; empty unless all of them are known. Waits for the device."""
        wanted = _sample(embeds).cpu()
        self._known = [(sample.cpu(), rows) for sample, rows in self._known]
        found = [self._row(sample) for sample in wanted]
        return () if None in found else tuple(row for row in found if row is not None)

    def _row(self, wanted: torch.Tensor) -> Row | None:
        for samples, rows in reversed(self._known):
            for sample, row in zip(samples, rows, strict=True):
                if torch.equal(sample, wanted):
                    return row
        return None


def _sample(embeds: torch.Tensor) -> torch.Tensor:
    """[b, 8·k + 1] fp32: M, and some numbers of up to 64 tokens, the last one included, which all others may change."""
    M, D = embeds.shape[1:]
    tokens = torch.linspace(0, M - 1, min(M, _SAMPLED_TOKENS)).round().long().tolist()
    numbers = embeds.detach()[:, tokens, :: max(1, D // _SAMPLED_CHANNELS)].float().flatten(1)
    return torch.cat([numbers.new_full((len(numbers), 1), M), numbers], dim=1)


@dataclass(frozen=True)
class MaskWords:
    """What the words of a run's prompts weigh.

    Attributes:
        weights: [b, M] fp32, or None where there is nothing to build a mask from.
        words: the words of every image's prompt.
        problem: why there are no weights, or ''.
    """

    weights: torch.Tensor | None
    words: tuple[WordWeights, ...] = ()
    problem: str = ""


class PromptWeights:
    """Weighs the prompts of a bundle's pipeline with the bundle's scorer and anchors."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._scorer: Scorer | None = None

    def weigh(self, pipe: Any, rows: Sequence[Row], text_tokens: int, scoring: WordScoring) -> MaskWords:
        """Of every image's prompt. Decided after truncation: words no encoder reads weigh nothing.

        A prompt none of whose words weighs anything (an emoji, a row of dots) has all of its text weigh the same.
        """
        if not rows:
            return MaskWords(None, problem="the prompts behind these embeddings aren't known")
        segments = self._manifest.text
        scorer = self._scorer_of(pipe)
        tokenizers = {name: getattr(pipe, name, None) for segment in segments for name in segment.tokenizers}
        if all(tokenizer is None for tokenizer in tokenizers.values()):
            return MaskWords(None, problem="the pipeline was loaded without tokenizers")
        made: dict[tuple[str, ...], tuple[torch.Tensor, WordWeights]] = {}
        for row in rows:
            key = tuple(row[name] for name in PROMPT_OF)
            if key not in made:
                placed = PlacedText(row, tokenizers, segments, text_tokens)
                read = placed.read()
                words = {
                    name: weigh_words(prompt, scorer, self._manifest.anchors, scoring, read.get(prompt))
                    for name, prompt in row.items()
                }
                alpha = placed.weights(words)
                if not alpha.any():
                    alpha = placed.content()
                if bool((alpha == alpha[0]).all()):  # the same for every token of the picture
                    return MaskWords(None, problem=f"nothing in the prompt {row['tokenizer'][:40]!r} can weigh more")
                made[key] = alpha, words["tokenizer"]
        found = [made[tuple(row[name] for name in PROMPT_OF)] for row in rows]
        return MaskWords(torch.stack([alpha for alpha, _ in found]), tuple(words for _, words in found))

    def _scorer_of(self, pipe: Any) -> Scorer:
        if self._scorer is None:
            encoder, tokenizer = getattr(pipe, "text_encoder", None), getattr(pipe, "tokenizer", None)
            if self._manifest.token_scorer == "clip" and encoder is not None and tokenizer is not None:
                from accelaes_export.policies.clip import ClipScorer

                self._scorer = ClipScorer(tokenizer, encoder)
            else:
                self._scorer = LexicalScorer()  # the result says which one was used
        return self._scorer


def told(prompts: str | Sequence[str]) -> tuple[Row, ...]:
    """Rows of prompts that the caller says are behind his embeddings.

    Raises:
        InputError: for anything but a text or texts.
    """
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if not listed or not all(isinstance(prompt, str) for prompt in listed):
        raise InputError(f"words are {prompts!r}; give the prompt of every image, or one that all of them share.")
    return tuple(dict.fromkeys(PROMPT_OF, prompt) for prompt in listed)


def as_tokenised(pipe: Any, prompts: list[str], *, clean_caption: bool) -> list[str]:
    """The prompts as the pipeline hands them to its tokenizers."""
    clean = getattr(pipe, "_text_preprocessing", None)
    if clean is not None:  # in small letters, or with captions' debris taken out
        prompts = clean(prompts, clean_caption=clean_caption)
    untangle = getattr(sys.modules[type(pipe).__module__], "prompt_clean", None)
    if untangle is not None:  # video pipelines decode HTML's escapes and join runs of spaces
        prompts = [untangle(prompt) for prompt in prompts]
    return prompts


def _listed(prompt: str | Sequence[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)
