"""From words to token positions: α of every position of a transformer's text input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from accelaes_export.contract.manifest import TextSegment
from accelaes_export.errors import InputError, MissingComponentError
from accelaes_export.policies.words import WordWeights

if TYPE_CHECKING:
    import torch


class PlacedText:
    """One image's prompts in the positions of a transformer's text input. They are tokenised once, when it is made.

    Args:
        prompts: by tokenizer name.
        tokenizers: the pipeline's tokenizers by attribute name; None where it was loaded without, which weighs 0.
        segments: the manifest's text segments, in the order of the positions.
        text_tokens: M of this call, where it isn't the segments' sum; the last segment takes up the difference.

    Raises:
        InputError: for a tokenizer a segment names and `tokenizers` doesn't, or an M too short for the segments.
        MissingComponentError: for a tokenizer without character offsets that can't be converted to one that has them.
    """

    def __init__(
        self,
        prompts: Mapping[str, str],
        tokenizers: Mapping[str, Any],
        segments: Sequence[TextSegment],
        text_tokens: int | None = None,
    ) -> None:
        self._prompts = prompts
        self._length = sum(_lengths(segments, text_tokens))
        # For every tokenizer there is: its name, its first position, and its positions' characters of the prompt.
        self._placed: list[tuple[str, int, list[tuple[int, int]]]] = []
        first = 0
        for segment, length in zip(segments, _lengths(segments, text_tokens), strict=True):
            for name in segment.tokenizers:
                if name not in tokenizers:
                    raise InputError(
                        f"The bundle's text comes from {name!r}, but the pipeline has "
                        f"{', '.join(tokenizers) or 'no tokenizer'}: use a pipeline of the bundle's family, or give "
                        "None for a tokenizer it was loaded without."
                    )
                if tokenizers[name] is not None:
                    offsets = _offsets(prompts[name], tokenizers[name], name, segment, length)
                    self._placed.append((name, first, offsets))
            first += length

    def weights(self, words: Mapping[str, WordWeights]) -> torch.Tensor:
        """α [M] fp32 of the text positions, on the CPU, by the words' weights.

        A position weighs as much as the heaviest word its token has a character of; begin, end and padding weigh 0.
        Where the tokenizers of one segment disagree, the larger weight holds.

        Args:
            words: by tokenizer.
        """
        import torch

        weights = [0.0] * self._length
        for name, first, offsets in self._placed:
            own = words[name]
            of_character = [0.0] * len(own.prompt)
            for (start, end), weight in zip(own.spans, own.weights, strict=True):
                of_character[start:end] = [weight] * (end - start)
            for place, (start, end) in enumerate(offsets, first):
                weights[place] = max(weights[place], max(of_character[start:end], default=0.0))
        return torch.tensor(weights, dtype=torch.float32)

    def content(self) -> torch.Tensor:
        """1 at every text position that a character of its prompt is behind, 0 at begin, end and padding: [M] fp32."""
        import torch

        weights = [0.0] * self._length
        for _, first, offsets in self._placed:
            for place, (start, end) in enumerate(offsets, first):
                weights[place] = max(weights[place], float(start < end))
        return torch.tensor(weights, dtype=torch.float32)

    def read(self) -> dict[str, frozenset[int]]:
        """By prompt, the places of the characters that any encoder reads: those behind a truncation aren't."""
        read: dict[str, set[int]] = {prompt: set() for prompt in self._prompts.values()}
        for name, _, offsets in self._placed:
            for start, end in offsets:
                read[self._prompts[name]].update(range(start, end))
        return {prompt: frozenset(places) for prompt, places in read.items()}


def token_weights(
    words: WordWeights | Mapping[str, WordWeights],
    tokenizers: Mapping[str, Any],
    segments: Sequence[TextSegment],
    text_tokens: int | None = None,
) -> torch.Tensor:
    """α [M] of one prompt's text positions; see `PlacedText.weights`.

    Args:
        words: the prompt's weights, or one for each tokenizer where they are given different prompts.
        tokenizers, segments, text_tokens: as for `PlacedText`, which raises the same.
    """
    of = {name: words if isinstance(words, WordWeights) else words[name] for s in segments for name in s.tokenizers}
    prompts = {name: own.prompt for name, own in of.items()}
    return PlacedText(prompts, tokenizers, segments, text_tokens).weights(of)


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


def _offsets(prompt: str, tokenizer: Any, name: str, segment: TextSegment, length: int) -> list[tuple[int, int]]:
    """The prompt's characters, start to end, of at most `length` positions that one tokenizer fills.

    Begin, end, padding and the template come from none of them: start = end.
    """
    text, first = segment.template.format(prompt), segment.template.index("{")
    # Where a pipeline drops the beginning, it takes the padding out first and puts its own behind the text.
    padding = False if segment.drop else "max_length"
    room = {"max_length": segment.drop + length, "truncation": True}
    offsets = _tokenized(text, tokenizer, name, padding=padding, **room)["offset_mapping"][segment.drop :]
    return [_within(span, first, len(prompt)) for span in offsets]


def _within(span: tuple[int, int], first: int, length: int) -> tuple[int, int]:
    """A span of a text as one of the prompt in it, which begins at `first`; start = end where it has none of it."""
    start, end = max(span[0] - first, 0), min(span[1] - first, length)
    return (start, end) if start < end else (0, 0)


def _tokenized(prompt: str, tokenizer: Any, name: str, **options: Any) -> Any:
    """`prompt` tokenised as diffusers' pipelines do it with `options`, and which characters each token comes from."""
    fast = fast_form(tokenizer, name)
    encoding = fast(prompt, **options, return_offsets_mapping=True)
    if fast is not tokenizer and encoding["input_ids"] != tokenizer(prompt, **options)["input_ids"]:
        raise MissingComponentError(_SLOW.format(name=name, kind=type(tokenizer).__name__))
    return encoding


_SLOW = (
    "The tokenizer {name} ({kind}) is a slow one and can't tell which characters a token comes from: load its fast "
    "form, transformers.AutoTokenizer.from_pretrained(folder, use_fast=True), and hand that to the pipeline."
)


@lru_cache(maxsize=8)
def fast_form(tokenizer: Any, name: str) -> Any:
    """`tokenizer` itself, or its conversion where it is slow, as transformers 4 makes CLIP's for diffusers.

    Raises:
        MissingComponentError: for one that can't be converted, called `name` there.
    """
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
    spans = [_within(span, first, length) for span in encoding["offset_mapping"]]
    return [(start, end) for start, end in spans if start < end]
