"""The lexical scorer: a word that belongs to an anchor phrase, in any of its common forms, scores 1, any other 0."""

from __future__ import annotations

import re
from collections.abc import Sequence

from accelaes_export.policies.words import ScorerName, Word

_INNER = re.compile(r"[-\u2010\u2011_\u00ad\u200c\u200d]")
_VOWEL = re.compile("[aeiouy]")

# "Stunned" is a person's state and "stunning" a picture's: cut to one stem they would meet.
_KEPT_WHOLE = {"people": "person", "stunning": "stunning"}
_ENDINGS = (
    ("ically", "ic"),
    ("ally", "al"),
    ("ly", ""),
    ("ness", ""),
    ("ing", ""),
    ("ed", ""),
    ("est", ""),
    ("er", ""),
)


def lemma(word: str) -> str:
    """A word's stem after common English endings: detailed, details -> detail; intricately, intricate -> intricat.

    Not a dictionary form: it only has to be the same for the forms of one word, and different for different words.
    """
    stem = word.casefold().replace("\u2019", "'").removesuffix("'s").replace("'", "")
    if stem in _KEPT_WHOLE:
        return _KEPT_WHOLE[stem]
    stem = _singular(stem)
    for _ in range(2):  # "detailedly", "vibrantly": an adverb's ending, then the participle's
        for ending, instead in _ENDINGS:
            base = stem.removesuffix(ending) + instead
            if stem.endswith(ending) and len(base) >= 4 and _VOWEL.search(base):
                stem = base
                break
        if stem in _KEPT_WHOLE:
            return _KEPT_WHOLE[stem]
    if len(stem) > 4 and stem[-1] == stem[-2] and stem[-1] not in "aeiousl":
        stem = stem[:-1]  # bigg(er) -> big
    return stem.removesuffix("e") if len(stem) > 3 else stem


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes", "uses")):
        return word[:-2]
    if len(word) > 2 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


class LexicalScorer:
    """Whole-phrase and stem matches. Needs no model, so it also serves pipelines that carry no CLIP."""

    name: ScorerName = "lexical"

    def score(self, prompt: str, words: Sequence[Word], anchors: Sequence[str]) -> tuple[float, ...]:
        """1 for every word of `words` that is part of an anchor, else 0."""
        return anchor_matches(words, anchors)


def anchor_matches(words: Sequence[Word], anchors: Sequence[str]) -> tuple[float, ...]:
    """1.0 for every word that is part of an anchor phrase, else 0.0.

    A phrase matches consecutive words with no punctuation between; hyphen, underscore, blank or nothing at all between
    its parts, upper and lower case and the endings `lemma` knows make no difference.
    """
    wanted = {key for anchor in anchors for key in _keys(_parts(anchor))}
    longest = max((len(_parts(anchor)) for anchor in anchors), default=0) + 1  # "photo realistic" is one part longer
    parts = [(part, w) for w, word in enumerate(words) for part in _parts(word.text)]
    scores = [0.0] * len(words)
    for first in range(len(parts)):
        for last in range(first, min(first + longest, len(parts))):
            run = parts[first : last + 1]
            if words[run[0][1]].clause != words[run[-1][1]].clause:
                break
            if wanted & _keys([part for part, _ in run]):
                for _, w in run:
                    scores[w] = 1.0
    return tuple(scores)


def _parts(text: str) -> list[str]:
    """The pieces of a word or phrase between blanks, hyphens and underscores."""
    return [part for part in _INNER.sub(" ", text).split() if part]


def _keys(parts: Sequence[str]) -> set[str]:
    """What two spellings of a phrase share: all parts as stems, or (for "closeups") only the last one, run together."""
    if not parts:
        return set()
    written = "".join(part.casefold() for part in parts[:-1]) + lemma(parts[-1])
    return {"".join(lemma(part) for part in parts), written}
