"""Prompt words, stop words, anchors and the lexical scorer."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelaes_export.errors import InputError
from accelaes_export.policies.anchors import ANCHOR_GROUPS, ANCHORS
from accelaes_export.policies.lexical import LexicalScorer, lemma
from accelaes_export.policies.notation import without_notation
from accelaes_export.policies.words import WordScoring, split_words, weigh_words


class Scored:
    """A scorer with a table instead of a model."""

    name = "clip"

    def __init__(self, table):
        self.table = table

    def score(self, prompt, words, anchors):
        return tuple(self.table.get(word.text, 0.0) for word in words)


def weights_of(prompt, scorer=None, **options):
    result = weigh_words(prompt, scorer or LexicalScorer(), **options)
    return dict(zip(result.words, result.weights, strict=True))


def weighted(prompt, **options):
    return [word for word, weight in weights_of(prompt, **options).items() if weight]


def test_the_anchors_are_the_papers_34_in_six_groups():
    assert len(ANCHORS) == len(set(ANCHORS)) == 34
    assert [len(group) for group in ANCHOR_GROUPS.values()] == [12, 4, 5, 5, 3, 5]


@given(st.text(st.characters(codec="utf-8"), max_size=60))
@settings(deadline=None, max_examples=200)
def test_words_are_where_their_spans_say_and_every_letter_is_in_one(prompt):
    words = split_words(prompt)
    assert [word.text for word in words] == [prompt[word.start : word.end] for word in words]
    covered = {i for word in words for i in range(word.start, word.end)}
    letters = {i for i, c in enumerate(without_notation(prompt)) if unicodedata.category(c)[0] in "LNM"}
    assert letters <= covered
    assert all(a.end < b.start for a, b in itertools.pairwise(words)), "two words never touch"
    assert all({word.start, word.end - 1} <= letters for word in words), "a word begins and ends with a letter"


@given(st.lists(st.sampled_from(["a", "the", "red", "star,", ".", "-", "x's", "café", "\n"]), max_size=12))
@settings(deadline=None, max_examples=100)
def test_phrases_are_the_runs_between_stop_words_and_punctuation(pieces):
    prompt = " ".join(pieces)
    runs = re.split(r"\b(?:a|the)\b(?!')|[,.\n]|(?<= )-|^-", prompt)
    expected = [run.split() for run in runs if run.split()]
    phrases: dict[int, list[str]] = {}
    for word in split_words(prompt):
        if not word.stop:
            phrases.setdefault(word.phrase, []).append(word.text)
    assert list(phrases.values()) == expected


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a woman's close-up, it’s hand-drawn", ["a", "woman's", "close-up", "it’s", "hand-drawn"]),
        ("rock 'n' roll — 1.8, 10,000 (x: 1.2 m)", ["rock", "n", "roll", "1.8", "10,000", "x", "1.2", "m"]),
        (
            "e\u0301te\u0301 हिन्दी 美丽的风景 highly_detailed",
            ["e\u0301te\u0301", "हिन्दी", "美丽的风景", "highly_detailed"],
        ),
        ("-- ... ''", []),
    ],
)
def test_hyphens_apostrophes_marks_and_decimals_stay_inside_words(prompt, words):
    assert [word.text for word in split_words(prompt)] == words


def test_stop_words_are_dropped_in_any_case_and_with_either_apostrophe():
    prompt = "It’s A photo OF the cat's toy, and they don't care"
    assert list(weights_of(prompt)) == ["photo", "cat's", "toy", "care"]


def test_what_a_prompt_can_show_is_no_stop_word():
    things = "left right top two red large can mine still tin man"
    assert list(weights_of(things)) == things.split()


@pytest.mark.parametrize("anchor", ANCHORS)
def test_every_anchor_matches_itself_capitalised_hyphenated_underscored_and_run_together(anchor):
    for spelling in (
        anchor,
        anchor.upper(),
        anchor.replace(" ", "-"),
        anchor.replace(" ", "_"),
        anchor.replace(" ", ""),
    ):
        result = weigh_words(f"zebra, {spelling}, zebra", LexicalScorer(), anchors=[anchor])
        assert not result.fallback, spelling
        assert [word for word, weight in zip(result.words, result.weights, strict=True) if not weight] == ["zebra"] * 2


@pytest.mark.parametrize(
    ("forms", "stem_of"),
    [
        ("detailed details detail detailing Detail's", "detailed"),
        ("intricately intricate", "intricate"),
        ("vibrantly vibrant", "vibrant"),
        ("realistically realistic", "realistic"),
        ("sharper sharpest sharply sharpness", "sharp"),
        ("focuses focusing focus", "focused"),
        ("stunningly", "stunning"),
        ("beautifully", "beautiful"),
        ("people persons person's", "person"),
        ("figures objects characters portraits", None),
    ],
)
def test_a_words_forms_share_one_stem(forms, stem_of):
    for form in forms.split():
        assert lemma(form) == lemma(stem_of or form.removesuffix("s"))


@pytest.mark.parametrize(
    "other",
    ["stunned", "shape", "art", "lightning", "fielded", "artisan", "personal", "realism", "focal", "portray", "beauty"],
)
def test_other_words_are_no_anchors(other):
    assert weigh_words(other, LexicalScorer()).fallback


def test_stems_of_different_anchor_words_differ():
    words = {word for anchor in ANCHORS for word in anchor.split()} - {"focus"}  # "focus" and "focused" are one
    assert len({lemma(word) for word in words}) == len(words)


def test_a_phrase_matches_consecutive_words_only():
    assert weighted("shallow depth of field", scoring=WordScoring(scope="word")) == ["depth", "field"]
    assert weighted("photo realistic woman", scoring=WordScoring(scope="word")) == ["photo", "realistic"]
    for prompt in ("a field of depth", "depth, of field", "depth of a field", "studio, lighting"):
        assert weigh_words(prompt, LexicalScorer()).fallback, prompt


def test_the_weight_of_an_aesthetic_word_carries_over_to_its_noun_phrase():
    prompt = "an intricate red star on the left, plain blue circle and vivid green square"
    assert weighted(prompt) == ["intricate", "red", "star", "vivid", "green", "square"]
    assert weighted(prompt, scoring=WordScoring(scope="word")) == ["intricate", "vivid"]


def test_the_largest_weight_of_a_phrase_holds_for_all_of_it():
    scorer = Scored({"ornate": 0.7, "golden": 0.9, "faint": 0.61, "dog": 0.59, "of": 0.99})
    prompt = "ornate golden vase of a faint dog, table"
    expected = {"ornate": 0.9, "golden": 0.9, "vase": 0.9, "faint": 0.61, "dog": 0.61, "table": 0.0}
    assert weights_of(prompt, scorer) == expected
    assert weights_of(prompt, scorer, scoring=WordScoring(scope="word")) == {
        "ornate": 0.7, "golden": 0.9, "vase": 0.0, "faint": 0.61, "dog": 0.0, "table": 0.0
    }  # fmt: skip


@given(st.lists(st.sampled_from(["a", "on", "ornate", "faint", "vase", "left", "sky,", "red"]), max_size=12))
@settings(deadline=None, max_examples=100)
def test_scope_others_weighs_exactly_the_content_words_that_scope_phrase_leaves_out(pieces):
    prompt, scorer = " ".join(pieces), Scored({"ornate": 0.9, "faint": 0.61, "on": 0.99})
    phrase, others, uniform = (
        weigh_words(prompt, scorer, scoring=WordScoring(scope=scope)) for scope in ("phrase", "others", "all")
    )
    assert set(uniform.weights) <= {1.0}
    assert uniform.words == phrase.words == others.words
    if phrase.fallback or all(phrase.weights):  # no word is aesthetic, or none is not
        assert others.fallback
        assert others.weights == uniform.weights
    else:
        assert not others.fallback
        assert others.weights == tuple(0.0 if weight else 1.0 for weight in phrase.weights)


def test_the_papers_non_aesthetic_and_uniform_weights_of_a_prompt():
    prompt = "an intricate red star on the left, plain blue background"
    assert weighted(prompt, scoring=WordScoring(scope="others")) == ["left", "plain", "blue", "background"]
    uniform = weigh_words(prompt, LexicalScorer(), scoring=WordScoring(scope="all"))
    assert set(uniform.weights) == {1.0}
    assert uniform.words == ("intricate", "red", "star", "left", "plain", "blue", "background")
    assert not uniform.fallback, "chosen, not fallen back to"


def test_a_threshold_of_1_is_uniform_for_a_model_s_scores_and_not_for_lexical_ones():
    prompt, highest = "an intricate red star on the left", WordScoring(threshold=1.0)
    assert set(weights_of(prompt, Scored({"intricate": 0.99}), scoring=highest).values()) == {1.0}
    assert weights_of(prompt, scoring=highest) == weights_of(prompt)
    assert weighted(prompt, scoring=highest) == ["intricate", "red", "star"]


def test_below_the_threshold_every_content_word_weighs_the_same():
    scorer = Scored({"red": 0.5999, "the": 0.99})
    result = weigh_words("the red star", scorer)
    assert result.fallback
    assert (result.words, result.weights) == (("red", "star"), (1.0, 1.0))
    assert weigh_words("the red star", scorer, scoring=WordScoring(0.5)).weights == (0.5999, 0.5999)
    assert not weigh_words("the red star", Scored({"red": 0.60})).fallback


def test_a_prompt_of_stop_words_weighs_them_and_an_empty_one_nothing():
    assert weights_of("this and that") == {"this": 1.0, "and": 1.0, "that": 1.0}
    empty = weigh_words(" ,. ", LexicalScorer())
    assert (empty.words, empty.fallback) == ((), True)


def test_the_result_prints_as_pairs_from_the_heaviest_down():
    scorer = Scored({"ornate": 0.7, "vivid": 0.9})
    result = weigh_words("table, ornate vase, vivid sky", scorer, scoring=WordScoring(scope="word"))
    assert result.pairs() == (("vivid", 0.9), ("ornate", 0.7), ("table", 0.0), ("vase", 0.0), ("sky", 0.0))
    assert str(result) == "vivid 0.90, ornate 0.70, table 0.00, vase 0.00, sky 0.00 (clip)"
    assert str(weigh_words("red", LexicalScorer())) == "red 1.00 (lexical, uniform fallback)"
    assert [result.prompt[a:b] for a, b in result.spans] == list(result.words)


def test_anchors_can_be_replaced():
    assert weighted("glossy red star, intricate sky", anchors=("glossy",)) == ["glossy", "red", "star"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scope": "noun"}, "'noun'.*word.*phrase.*others.*all"),
        ({"threshold": 0}, "threshold is 0"),
        ({"threshold": 1.1}, "is 1.1"),
    ],
)
def test_impossible_options_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        WordScoring(**options)


def test_an_anchor_list_without_words_is_refused():
    with pytest.raises(InputError, match="no words"):
        weigh_words("red star", LexicalScorer(), anchors=())


def test_words_are_weighed_lexically_without_torch():
    code = (
        "import sys; from accelaes_export.policies.words import weigh_words; "
        "from accelaes_export.policies.lexical import LexicalScorer; "
        "weigh_words('a vivid sky', LexicalScorer()); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
