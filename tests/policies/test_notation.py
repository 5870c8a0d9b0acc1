"""What people paste around words for other programs is read through."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.policies.lexical import LexicalScorer
from accelaes_export.policies.notation import without_notation
from accelaes_export.policies.words import split_words, weigh_words

PLAIN = "an intricate red star on the left, plain blue circle"


def weighed(prompt):
    result = weigh_words(prompt, LexicalScorer())
    return list(zip(result.words, result.weights, strict=True))


@pytest.mark.parametrize(
    "intricate",
    [
        "(intricate)",
        "((intricate))",
        "(((intricate)))",
        "(intricate:1.3)",
        "(intricate: 1.3)",
        "((intricate:1.3))",
        "(intricate:.5)",
        "(intricate)1.2",
        "(intricate)++",
        "intricate++",
        "intricate--",
        "intricate:1.2",
        "intricate::2",
        "[intricate]",
        "[[intricate]]",
        "[intricate:0.5]",
        "{intricate}",
        "{{{intricate}}}",
        r"\(intricate\)",
        r"\[intricate\]",
        "__intricate__",
        "_intricate_",
        "**intricate**",
        "*intricate*",
        "{[(intricate:1.1)]}",
        "<lora:detail-tweaker_v2:0.8> intricate",
        "<LORA:x:-1> intricate",
        "<embedding:easy> intricate",
    ],
)
def test_a_word_in_prompt_notation_weighs_what_it_weighs_without(intricate):
    assert weighed(PLAIN.replace("intricate", intricate)) == weighed(PLAIN)


@pytest.mark.parametrize(
    "words",
    ["(intricate red star:1.3)", "[intricate red] star", "intricate (red) {star}", "(intricate) red star:1.2"],
)
def test_notation_around_some_words_of_a_phrase_does_not_end_it(words):
    assert weighed(PLAIN.replace("intricate red star", words)) == weighed(PLAIN)


@pytest.mark.parametrize("at_end", ["plain (blue circle:1.2)", "plain blue circle:1.2", "plain blue (circle)1.2."])
def test_notation_at_the_end_of_the_prompt_is_notation(at_end):
    assert weighed(PLAIN.replace("plain blue circle", at_end)) == weighed(PLAIN)


@pytest.mark.parametrize("between", ["BREAK", " BREAK ", "\nBREAK\n", ", BREAK"])
def test_break_ends_a_phrase_and_is_no_word(between):
    assert weighed(f"intricate star {between} blue sky") == weighed("intricate star, blue sky")
    assert [word.text for word in split_words("a star about to break")][-1] == "break"


@pytest.mark.parametrize(
    ("prose", "words"),
    [
        ("at 10:30 in Paris", "at 10:30 in Paris"),
        ("ratio 16:9, 1.5 m", "ratio 16:9, 1.5 m"),
        ("a sign: 3 stars", "a sign: 3 stars"),
        ("highly_detailed hand-drawn star-", "highly_detailed hand-drawn star-"),
        ("2 * 3 stars * 4", "2 * 3 stars * 4"),
        ("a < b and b > c", "a < b and b > c"),
        ("an unclosed (bracket", "an unclosed (bracket"),
        (":) a smile (-:", ":) a smile (-:"),
    ],
)
def test_what_only_looks_like_notation_stays(prose, words):
    assert without_notation(prose) == words


@given(st.text(st.sampled_from("ab ,.:1()[]{}<>\\_*+-"), max_size=40))
def test_every_character_stays_at_its_place_and_no_word_is_made_up(prompt):
    plain = without_notation(prompt)
    assert len(plain) == len(prompt)
    assert all(new in (old, " ") for old, new in zip(prompt, plain, strict=True))


def test_a_prompt_of_nothing_but_brackets_takes_no_time():
    start = time.perf_counter()
    for text in ("(" * 5000 + "a" + ")" * 5000, "*" * 5000, "(" * 5000, "_" * 5000, "a:" * 5000, "[" + "a" * 5000):
        without_notation(text)
    assert time.perf_counter() - start < 5
