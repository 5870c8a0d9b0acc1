"""From words to token positions: α of every position of a transformer's text input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from accelaes_export.errors import InputError, MissingComponentError
from accelaes_export.manifest import TextSegment
from accelaes_export.policies.words import WordWeights

if TYPE_CHECKING:
    import torch


def token_weights(
    word_weights: WordWeights | Mapping[str, WordWeights],
    tokenizers: Mapping[str, Any],
    segments: Sequence[TextSegment],
    text_tokens: int | None = None,
) -> torch.Tensor:
    """α [M] fp32 of one prompt's text positions, on the CPU.

    A position weighs as much as the heaviest word its token has a character of; begin, end and padding weigh 0. Where
    the tokenizers of one segment disagree, the larger weight holds.

    Args:
        word_weights: the prompt's weights, or one for each tokenizer where they are given different prompts.
        tokenizers: the pipeline's tokenizers by attribute name; None where it was loaded without, which weighs 0.
        segments: the manifest's text segments, in the order of the positions.
        text_tokens: M of this call, where it isn't the segments' sum; the last segment takes up the difference.

    Raises:
        InputError: for a tokenizer a segment names and `tokenizers` doesn't, or an M too short for the segments.
        MissingComponentError: for a tokenizer without character offsets that can't be converted to one that has them.
    """
    import torch

    lengths = _lengths(segments, text_tokens)
    weights = [0.0] * sum(lengths)
    start = 0
    for segment, length in zip(segments, lengths, strict=True):
        for name in segment.tokenizers:
            if name not in tokenizers:
                raise InputError(
                    f"The bundle's text comes from {name!r}, but the pipeline has "
                    f"{', '.join(tokenizers) or 'no tokenizer'}: use a pipeline of the bundle's family, or give None "
                    "for a tokenizer it was loaded without."
                )
            if tokenizers[name] is None:
                continue
            words = word_weights if isinstance(word_weights, WordWeights) else word_weights[name]
            for position, weight in enumerate(_weights_of(words, tokenizers[name], name, segment, length)):
                weights[start + position] = max(weights[start + position], weight)
        start += length
    return torch.tensor(weights, dtype=torch.float32)


def cut_words(prompt: str, tokenizer: Any, segment: TextSegment) -> str:
    """The part of `prompt` that a segment has no room for, or '' where all of it fits.

    A word cut in the middle is given from where the cut is.

    Raises:
        MissingComponentError: for a tokenizer without character offsets that can't be converted to one that has them.
    """
    name = getattr(tokenizer, "name_or_path", "") or "of this pipeline"
    text, first = segment.template.format(prompt), segment.template.index("{")
    room = {"max_length": segment.drop + segment.length, "truncation": True}
    whole = _content_offsets(_tokenized(text, tokenizer, name, verbose=False), first, len(prompt))
    kept = _content_offsets(_tokenized(text, tokenizer, name, **room), first, len(prompt))
    if len(kept) >= len(whole):
        return ""
    if getattr(tokenizer, "truncation_side", "right") == "left":
        return prompt[: min((start for start, _ in kept), default=len(prompt))].strip()
    return prompt[max((end for _, end in kept), default=0) :].strip()


def _lengths(segments: Sequence[TextSegment], text_tokens: int | None) -> list[int]:
    lengths = [segment.length for segment in segments]
    if text_tokens is None:
        return lengths
    fixed = sum(lengths[:-1])
    if not lengths or text_tokens <= fixed:
        raise InputError(
            f"This call has {text_tokens} text positions, but the bundle's {len(lengths)} text segments need at least "
            f"{fixed + 1}: encode the prompt with the pipeline the bundle was built from."
        )
    return [*lengths[:-1], text_tokens - fixed]


def _weights_of(words: WordWeights, tokenizer: Any, name: str, segment: TextSegment, length: int) -> list[float]:
    """α of the `length` positions one tokenizer fills."""
    text, first = segment.template.format(words.prompt), segment.template.index("{")
    of_character = [0.0] * len(text)
    for (start, end), weight in zip(words.spans, words.weights, strict=True):
        of_character[first + start : first + end] = [weight] * (end - start)
    # Where a pipeline drops the beginning, it takes the padding out first and puts its own behind the text.
    padding = False if segment.drop else "max_length"
    room = {"max_length": segment.drop + length, "truncation": True}
    offsets = _tokenized(text, tokenizer, name, padding=padding, **room)["offset_mapping"][segment.drop :]
    # Begin, end and padding come from no characters.
    weights = [max(of_character[start:end], default=0.0) for start, end in offsets]
    return weights + [0.0] * (length - len(weights))


def _tokenized(prompt: str, tokenizer: Any, name: str, **options: Any) -> Any:
    """`prompt` tokenised as diffusers' pipelines do it with `options`, and which characters each token comes from."""
    fast = _fast_form(tokenizer, name)
    encoding = fast(prompt, **options, return_offsets_mapping=True)
    if fast is not tokenizer and encoding["input_ids"] != tokenizer(prompt, **options)["input_ids"]:
        raise MissingComponentError(_SLOW.format(name=name, kind=type(tokenizer).__name__))
    return encoding


_SLOW = (
    "The tokenizer {name} ({kind}) is a slow one and can't tell which characters a token comes from: load its fast "
    "form, transformers.AutoTokenizer.from_pretrained(folder, use_fast=True), and hand that to the pipeline."
)


@lru_cache(maxsize=8)
def _fast_form(tokenizer: Any, name: str) -> Any:
    """`tokenizer` itself, or its conversion where it is slow, as transformers 4 makes CLIP's for diffusers."""
    if getattr(tokenizer, "is_fast", False):
        return tokenizer
    try:
        from transformers import PreTrainedTokenizerFast
        from transformers.convert_slow_tokenizer import convert_slow_tokenizer

        return PreTrainedTokenizerFast(
            tokenizer_object=convert_slow_tokenizer(tokenizer),
            model_max_length=tokenizer.model_max_length,
            padding_side=tokenizer.padding_side,
            truncation_side=tokenizer.truncation_side,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # whatever it is, the remedy is the same
        raise MissingComponentError(_SLOW.format(name=name, kind=type(tokenizer).__name__)) from error


def _content_offsets(encoding: Any, first: int, length: int) -> list[tuple[int, int]]:
    """The prompt's characters of every token that has any, which begin, end, padding and template don't.

    Args:
        first, length: where in the text the prompt begins, and how many characters it has.
    """
    spans = [(max(start - first, 0), min(end - first, length)) for start, end in encoding["offset_mapping"]]
    return [(start, end) for start, end in spans if start < end]
