"""Prompt words and their weights α (Eq. 4-5): which words of a prompt speak of its looks, and how much."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import compress, groupby
from typing import Literal, Protocol, get_args

from accelaes_export.checks import is_number
from accelaes_export.errors import InputError
from accelaes_export.policies.anchors import ANCHORS
from accelaes_export.policies.notation import without_notation
from accelaes_export.policies.stop_words import is_stop_word

THRESHOLD = 0.60  # table 3: minimum score for anchor weighting

Scope = Literal["word", "phrase", "others", "all"]
ScorerName = Literal["clip", "lexical"]


@dataclass(frozen=True)
class WordScoring:
    """Which of a prompt's words count, and for whom.

    Attributes:
        threshold: smallest α that counts (table 3).
        scope: "phrase" carries an aesthetic word's weight over to its noun phrase, because the adjective's attention
            alone doesn't tell two objects apart; "word" is the paper's, the aesthetic word by itself. Two are for
            telling what the choice of words is worth (the paper's table 8): "others" weighs what "phrase" leaves out,
            "all" every content word, 1 each.

    Raises:
        InputError: for an unknown scope, or a threshold outside (0, 1].
    """

    threshold: float = THRESHOLD
    scope: Scope = "phrase"

    def __post_init__(self) -> None:
        if self.scope not in (allowed := get_args(Scope)):
            listed = ", ".join(repr(scope) for scope in allowed)
            raise InputError(f"scope is {self.scope!r}; allowed are {listed}: give one of them.")
        if not (is_number(self.threshold) and 0 < self.threshold <= 1):
            raise InputError(f"threshold is {self.threshold!r}; allowed are numbers above 0 and up to 1.")


# Inside a word, between two of its letters: hyphens, apostrophes, underscore, soft hyphen, the zero-width joiners.
_JOINERS = frozenset("-\u2010\u2011'\u2019_\u00ad\u200c\u200d")
_DECIMAL = frozenset(".,")  # inside a number, between two digits


@dataclass(frozen=True)
class Word:
    """One word of a prompt.

    Attributes:
        text: as it is written.
        start, end: its characters, prompt[start:end].
        stop: whether it is a stop word, which never weighs anything by itself.
        clause: number of the punctuation-free stretch it stands in.
        phrase: number of its noun phrase, the run of content words between stop words and punctuation; -1: stop word.
    """

    text: str
    start: int
    end: int
    stop: bool
    clause: int
    phrase: int


def split_words(prompt: str) -> tuple[Word, ...]:
    """The words of `prompt` in order, stop words included.

    A word is a run of letters, marks and digits of any script, and what joins two of them: hyphen, apostrophe,
    underscore, and the point within a number. Any other character but a blank, a line break included, is punctuation;
    the notation of prompt weights, as in (red star:1.3), is as if it weren't there.
    """
    prompt = without_notation(prompt)
    words: list[Word] = []
    clause = phrase = end = 0
    after_stop = False
    for start, stop_at in _spans(prompt):
        interrupted = any(c in "\n\r" or not c.isspace() for c in prompt[end:start])
        clause += interrupted
        text, end = prompt[start:stop_at], stop_at
        stop = is_stop_word(text)
        phrase += interrupted or after_stop
        words.append(Word(text, start, end, stop, clause, -1 if stop else phrase))
        after_stop = stop
    return tuple(words)


def _spans(prompt: str) -> Iterator[tuple[int, int]]:
    letters = [unicodedata.category(c)[0] in "LNM" for c in prompt]
    i = 0
    while i < len(prompt):
        if not letters[i]:
            i += 1
            continue
        start = i
        while i < len(prompt) and (letters[i] or (i + 1 < len(prompt) and letters[i + 1] and _joins(prompt, i))):
            i += 1
        yield start, i


def _joins(prompt: str, i: int) -> bool:
    if prompt[i] in _JOINERS:
        return True
    return prompt[i] in _DECIMAL and prompt[i - 1].isdigit() and prompt[i + 1].isdigit()


class Scorer(Protocol):
    """Scores words against anchors."""

    @property
    def name(self) -> ScorerName:
        """What the result calls it."""

    def score(self, prompt: str, words: Sequence[Word], anchors: Sequence[str]) -> tuple[float, ...]:
        """α of each of `words` (all words of `prompt`, in order), at most 1: the largest similarity to any anchor."""


@dataclass(frozen=True)
class WordWeights:
    """The content words of a prompt and what each weighs.

    Attributes:
        prompt: the text the spans count in.
        words: the content words, in order.
        spans: their characters, (start, end) in `prompt`.
        weights: α of each, 0 to 1.
        scorer: what scored them.
        fallback: True where no word reached the threshold, or there are no others that scope "others" asks for, and
            all weigh 1 alike (a normal mode: A.3, E.3).
    """

    prompt: str
    words: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]
    scorer: ScorerName
    fallback: bool

    def pairs(self) -> tuple[tuple[str, float], ...]:
        """Word and weight, the heaviest first, equal ones in the prompt's order."""
        return tuple(sorted(zip(self.words, self.weights, strict=True), key=lambda pair: -pair[1]))

    def __str__(self) -> str:
        listed = ", ".join(f"{word} {weight:.2f}" for word, weight in self.pairs()) or "no words"
        return f"{listed} ({self.scorer}{', uniform fallback' if self.fallback else ''})"


def weigh_words(
    prompt: str,
    scorer: Scorer,
    anchors: Sequence[str] = ANCHORS,
    scoring: WordScoring | None = None,
    read: AbstractSet[int] | None = None,
) -> WordWeights:
    """α of every content word (Eq. 4-5 and table 3) that is read.

    A word whose α is below the threshold is no aesthetic word and weighs 0; the others weigh their α. If there is no
    aesthetic word at all, every content word weighs 1 (`fallback`); in a prompt of stop words alone, every word.

    Args:
        prompt: the positive prompt of one image.
        scorer: LexicalScorer() or ClipScorer(tokenizer, text_encoder).
        anchors: phrases that speak of looks.
        scoring: threshold and scope. In scope "phrase", "an intricate red star on the left" gives α to intricate, red
            and star, but not to left; "others" gives 1 to left alone, "all" to the four.
        read: the places of the prompt's characters that a text encoder reads, if not all: a word behind the
            truncation has no weight and takes none away.

    Raises:
        InputError: for a list without anchors.
    """
    scoring = scoring or WordScoring()
    if not any(split_words(anchor) for anchor in anchors):
        raise InputError("The anchor list has no words; give at least one phrase, or leave it out for the paper's 34.")
    words = split_words(prompt)
    scores = scorer.score(prompt, words, anchors) if words else ()
    if read is not None:  # scored in the whole prompt, which is what was meant
        known = [not read.isdisjoint(range(word.start, word.end)) for word in words]
        words, scores = tuple(compress(words, known)), tuple(compress(scores, known))
    content = [(word, score) for word, score in zip(words, scores, strict=True) if not word.stop]
    weights = [min(score, 1.0) if score >= scoring.threshold else 0.0 for _, score in content]
    if scoring.scope in ("phrase", "others"):
        weights = _carried_over([word.phrase for word, _ in content], weights)
    aesthetic = any(weights)
    if scoring.scope == "others":
        weights = [0.0 if weight else 1.0 for weight in weights]
    elif scoring.scope == "all":
        weights = [1.0] * len(weights)
    fallback = not (aesthetic and any(weights))
    if fallback:
        content = content or list(zip(words, scores, strict=True))
        weights = [1.0] * len(content)
    return WordWeights(
        prompt=prompt,
        words=tuple(word.text for word, _ in content),
        spans=tuple((word.start, word.end) for word, _ in content),
        weights=tuple(weights),
        scorer=scorer.name,
        fallback=fallback,
    )


def _carried_over(phrases: Sequence[int], weights: Sequence[float]) -> list[float]:
    """Every weight replaced by the largest of its phrase; equal phrase numbers stand together."""
    carried: list[float] = []
    for _, run in groupby(zip(phrases, weights, strict=True), key=lambda pair: pair[0]):
        members = [weight for _, weight in run]
        carried += [max(members)] * len(members)
    return carried
