"""Word weights on text positions, with real fast tokenizers, against a check character by character."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelaes_export.contract.manifest import TextSegment
from accelaes_export.errors import InputError, MissingComponentError
from accelaes_export.policies.lexical import LexicalScorer
from accelaes_export.policies.words import WordScoring, WordWeights, weigh_words
from accelaes_export.runtime.text import cut_words, token_weights
from tests.policies.small_tokenizers import clip_tokenizer, t5_tokenizer

torch.set_num_threads(1)

CLIP = clip_tokenizer(("intricate", "red", "star", "detailed", "on"), length=20)
CLIP_2 = clip_tokenizer(("intri", "cate", "left"), length=20)  # same layout, other merges: positions disagree
T5 = t5_tokenizer(("\u2581intric", "ate", "\u2581red", "\u2581star", "\u2581on", "\u2581the", "ed"))
T5_LEFT = t5_tokenizer(("\u2581intric", "ate", "\u2581red"), padding_side="left")

SD3 = (
    TextSegment(tokenizers=("tokenizer", "tokenizer_2"), length=20),
    TextSegment(tokenizers=("tokenizer_3",), length=40),
)
TOKENIZERS = {"tokenizer": CLIP, "tokenizer_2": CLIP_2, "tokenizer_3": T5}

PIECES = [
    "an",
    "intricate",
    "Red",
    "star",
    "on",
    "the",
    "left,",
    "café",
    "highly-detailed",
    "  ",
    "x_y",
    "É",
    "zz.",
    "☃",
]
prompts = st.lists(st.sampled_from(PIECES), max_size=14).map(" ".join)


@st.composite
def weighed(draw):
    """A prompt with arbitrary weights on its words, some of them 0."""
    uniform = weigh_words(
        draw(prompts), LexicalScorer(), scoring=WordScoring(scope=draw(st.sampled_from(["word", "phrase"])))
    )
    number = len(uniform.words)
    weights = draw(st.lists(st.sampled_from([0.0, 0.625, 0.75, 1.0]), min_size=number, max_size=number))
    return WordWeights(uniform.prompt, uniform.words, uniform.spans, tuple(weights), "clip", False)


def expected_of(words, tokenizer, length):
    """Every position's weight from its token's characters, looked up one by one in every word."""
    encoding = tokenizer(
        words.prompt, padding="max_length", max_length=length, truncation=True, return_offsets_mapping=True
    )
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if tokenizer.unk_token_id == tokenizer.eos_token_id:  # CLIP's unknown, end and padding are one token
        special.add(tokenizer.unk_token_id)
    weights = []
    for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
        heaviest = 0.0
        for character in range(start, end):
            for (word_start, word_end), weight in zip(words.spans, words.weights, strict=True):
                if word_start <= character < word_end and token not in special:
                    heaviest = max(heaviest, weight)
        weights.append(heaviest)
    return weights


@given(weighed(), st.sampled_from([CLIP, CLIP_2, T5, T5_LEFT]), st.integers(3, 60))
@settings(deadline=None, max_examples=150)
def test_a_token_weighs_as_much_as_the_heaviest_word_it_has_a_character_of(words, tokenizer, length):
    segments = [TextSegment(tokenizers=("any",), length=length)]
    weights = token_weights(words, {"any": tokenizer}, segments)
    assert weights.dtype == torch.float32
    assert weights.tolist() == expected_of(words, tokenizer, length)


@given(weighed(), st.one_of(st.none(), st.integers(22, 70)))
@settings(deadline=None, max_examples=60)
def test_segments_follow_each_other_and_tokenizers_that_share_positions_give_the_larger_weight(words, text_tokens):
    weights = token_weights(words, TOKENIZERS, SD3, text_tokens)
    M = text_tokens or 60
    shared = [max(pair) for pair in zip(expected_of(words, CLIP, 20), expected_of(words, CLIP_2, 20), strict=True)]
    assert weights.tolist() == shared + expected_of(words, T5, M - 20)


def test_a_word_carries_its_weight_to_every_piece_it_is_split_into():
    words = weigh_words("An intricate red star on the left", LexicalScorer())
    weights = token_weights(words, TOKENIZERS, SD3)
    clip = [p for p, w in zip(CLIP.convert_ids_to_tokens(CLIP(words.prompt)["input_ids"]), weights, strict=False) if w]
    assert {"intricate</w>", "red</w>", "star</w>"} <= set(clip)
    pieces = T5.convert_ids_to_tokens(T5(words.prompt)["input_ids"])
    t5 = [piece for piece, weight in zip(pieces, weights[20:], strict=False) if weight]
    assert "".join(t5) == "\u2581intricate\u2581red\u2581star"


def test_begin_end_and_padding_weigh_nothing():
    weights = token_weights(weigh_words("red", LexicalScorer()), TOKENIZERS, SD3[:1])
    assert CLIP("red")["input_ids"][1:-1] == CLIP.convert_tokens_to_ids(["red</w>"])
    assert weights[0] == 0
    assert weights[1] == 1
    assert weights[4:].sum() == 0  # CLIP_2 has red in three letters, then the end


def test_a_tokenizer_the_pipeline_was_loaded_without_weighs_nothing():
    words = weigh_words("intricate red star", LexicalScorer())
    weights = token_weights(words, {**TOKENIZERS, "tokenizer_3": None}, SD3)
    assert weights[:20].any()
    assert not weights[20:].any()


def test_each_tokenizer_may_have_a_prompt_of_its_own():
    own = {name: weigh_words("red", LexicalScorer()) for name in ("tokenizer", "tokenizer_2")}
    own["tokenizer_3"] = weigh_words("on the star", LexicalScorer())
    weights = token_weights(own, TOKENIZERS, SD3)
    assert weights[20:].tolist() == expected_of(own["tokenizer_3"], T5, 40)
    assert weights[:20].tolist() == token_weights(own["tokenizer"], TOKENIZERS, SD3)[:20].tolist()


def test_positions_are_those_of_diffusers_own_tokenisation():
    """The pipeline's own methods give the ids; the weighted positions hold the weighted words and nothing else."""
    from types import SimpleNamespace

    from diffusers import StableDiffusion3Pipeline

    seen = []

    class Encoder:
        dtype = torch.float32

        def __call__(self, ids, **_):
            seen.append(ids[0])
            states = torch.zeros(*ids.shape, 4)
            return Output((states if ids.shape[1] == 40 else states[:, 0],))

    class Output(tuple):
        hidden_states = (torch.zeros(1, 20, 4),) * 2

    encoder = Encoder()
    pipeline = SimpleNamespace(
        tokenizer=CLIP, tokenizer_2=CLIP_2, tokenizer_3=T5, tokenizer_max_length=20, _execution_device="cpu",
        text_encoder=encoder, text_encoder_2=encoder, text_encoder_3=encoder,
    )  # fmt: skip
    words = weigh_words("An intricate red star, on it", LexicalScorer())
    StableDiffusion3Pipeline._get_clip_prompt_embeds(pipeline, words.prompt, clip_model_index=0)
    StableDiffusion3Pipeline._get_clip_prompt_embeds(pipeline, words.prompt, clip_model_index=1)
    StableDiffusion3Pipeline._get_t5_prompt_embeds(pipeline, words.prompt, max_sequence_length=40)
    for ids, name, segment in zip(seen, TOKENIZERS, (SD3[0], SD3[0], SD3[1]), strict=True):
        alone = TextSegment(tokenizers=(name,), length=segment.length)
        weights = token_weights(words, TOKENIZERS, [alone])
        assert len(ids) == len(weights)
        pieces = TOKENIZERS[name].convert_ids_to_tokens([int(i) for i in ids[weights > 0]])
        assert "".join(pieces).replace("</w>", "").replace("\u2581", "") == "intricateredstar"


def room_for(length):
    return TextSegment(tokenizers=("any",), length=length)


@given(prompts, st.sampled_from([CLIP, T5]), st.integers(3, 40))
@settings(deadline=None, max_examples=100)
def test_the_cut_part_is_all_that_the_kept_tokens_do_not_hold(prompt, tokenizer, length):
    cut = cut_words(prompt, tokenizer, room_for(length))
    fits = len(tokenizer(prompt)["input_ids"]) <= length
    assert (cut == "") or not fits
    assert prompt.rstrip().endswith(cut)
    encoding = tokenizer(prompt, max_length=length, truncation=True, return_offsets_mapping=True)
    read = {i for start, end in encoding["offset_mapping"] for i in range(start, end)}
    unread = "".join(c for i, c in enumerate(prompt) if i not in read and not c.isspace())
    assert unread == "".join(cut.split())


def test_cut_words_are_named_and_a_prompt_that_fits_has_none():
    assert cut_words("red star on intricate star", CLIP, room_for(5)) == "intricate star"
    assert cut_words("red star on intricate star", CLIP, room_for(7)) == ""
    assert cut_words("", CLIP, room_for(7)) == ""


def test_a_tokenizer_that_cuts_the_beginning_off_is_told_apart():
    tokenizer = clip_tokenizer(("red", "star", "on"), length=20)
    tokenizer.truncation_side = "left"
    assert cut_words("red star on red", tokenizer, room_for(4)) == "red star"


def test_a_template_shifts_the_prompts_words_and_weighs_nothing_itself():
    prompt = "an intricate red star"
    words = weigh_words(prompt, LexicalScorer())

    def segment(length):  # drops on, the, red and the colon
        return TextSegment(tokenizers=("any",), length=length, template="on the red: {} on the red", drop=4)

    for tokenizer in (T5, T5_LEFT):  # pipelines that drop the beginning have no padding before it
        pieces = tokenizer.tokenize(segment(40).template.format(prompt))[4:]
        weights = token_weights(words, {"any": tokenizer}, [segment(40)])
        heavy = [piece for piece, weight in zip(pieces, weights.tolist(), strict=False) if weight]
        assert "".join(heavy).replace("\u2581", "") == "intricateredstar"
        assert torch.equal(token_weights(words, {"any": tokenizer}, [segment(40)], text_tokens=8), weights[:8])
    assert cut_words(prompt, T5, segment(7)) == "star"
    assert cut_words(prompt, T5, segment(8)) == "", "what follows the prompt is cut, and nobody wrote it"


def test_a_template_has_one_place_for_the_prompt():
    for template in ("no place", "{} and {}", "{0}"):
        with pytest.raises(ValueError, match="template"):
            TextSegment(tokenizers=("any",), length=40, template=template)


def test_text_too_short_for_the_segments_is_refused():
    words = weigh_words("red", LexicalScorer())
    with pytest.raises(InputError, match="20 text positions.*2 text segments need at least 21"):
        token_weights(words, TOKENIZERS, SD3, text_tokens=20)


def test_a_tokenizer_the_pipeline_does_not_know_is_named_with_those_it_has():
    words = weigh_words("red", LexicalScorer())
    with pytest.raises(InputError, match="'tokenizer_3'.*pipeline has tokenizer, tokenizer_2"):
        token_weights(words, {"tokenizer": CLIP, "tokenizer_2": CLIP_2}, SD3)


def test_a_slow_tokenizer_is_refused_with_what_to_do():
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(MissingComponentError, match=r"tokenizer_3 \(SlowTokenizer\).*use_fast=True"):
        token_weights(weigh_words("red", LexicalScorer()), {"tokenizer_3": SlowTokenizer()}, SD3[1:])
    with pytest.raises(MissingComponentError, match="SlowTokenizer.*AutoTokenizer"):
        cut_words("red", SlowTokenizer(), room_for(20))
