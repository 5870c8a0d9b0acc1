"""The CLIP scorer on a tiny random text encoder, against one text at a time in float64."""

from __future__ import annotations

import pytest
import torch

from accelaes_export.policies.clip import ClipScorer
from accelaes_export.policies.words import WordScoring, split_words, weigh_words
from tests.policies.small_tokenizers import clip_tokenizer

torch.set_num_threads(1)

WORDS = ("intricate", "red", "star", "vivid", "depth", "field", "beautiful", "of")
ANCHORS = ("intricate", "vivid", "depth of field", "beautiful")


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer(WORDS, length=24)


@pytest.fixture(scope="module")
def text_encoder(tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=24, projection_dim=16, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config).eval()


def embedded(text, tokenizer, text_encoder):
    """Mean of the content tokens' last hidden states, one text without any padding."""
    ids = tokenizer(text)["input_ids"]
    with torch.no_grad():
        states = text_encoder(torch.tensor([ids])).last_hidden_state[0]
    content = [s.double() for i, s in zip(ids, states, strict=True) if i not in tokenizer.all_special_ids]
    return torch.stack(content).mean(dim=0)


def test_alpha_is_the_largest_cosine_between_word_and_anchor(tokenizer, text_encoder):
    prompt = "a red star, unmerged VIVID x"
    words = split_words(prompt)
    scores = ClipScorer(tokenizer, text_encoder).score(prompt, words, ANCHORS)
    anchors = [embedded(anchor, tokenizer, text_encoder) for anchor in ANCHORS]
    for word, score in zip(words, scores, strict=True):
        mine = embedded(word.text, tokenizer, text_encoder)
        cosines = [torch.cosine_similarity(mine, anchor, dim=0).item() for anchor in anchors]
        assert score == pytest.approx(max(cosines), abs=1e-5)


def test_a_word_that_is_an_anchor_scores_one(tokenizer, text_encoder):
    result = weigh_words(
        "a Vivid star", ClipScorer(tokenizer, text_encoder), anchors=ANCHORS, scoring=WordScoring(1e-3, "word")
    )
    assert result.scorer == "clip"
    assert result.weights[0] == pytest.approx(1, abs=1e-5)
    assert max(result.weights) <= 1


def test_words_that_spell_an_anchor_of_several_words_score_one(tokenizer, text_encoder):
    words = split_words("red depth of field")
    scorer = ClipScorer(tokenizer, text_encoder)
    spelled, alone = scorer.score("", words, ANCHORS), scorer.score("", words, ("vivid",))
    assert spelled[1:] == (1.0, 1.0, 1.0)
    assert max(alone) < 1


def test_a_words_score_does_not_depend_on_its_neighbours_or_the_batch(tokenizer, text_encoder):
    scorer = ClipScorer(tokenizer, text_encoder)
    many = " ".join(f"word{i}" for i in range(150)) + " red"
    alone = scorer.score("red", split_words("red"), ANCHORS)[0]
    assert scorer.score(many, split_words(many), ANCHORS)[-1] == pytest.approx(alone, abs=1e-5)


def test_anchors_are_embedded_once_for_each_list(tokenizer, text_encoder):
    seen = []

    class Counting(ClipScorer):
        def embed(self, texts):
            seen.append(tuple(texts))
            return super().embed(texts)

    scorer = Counting(tokenizer, text_encoder)
    for prompt in ("red star", "star"):
        scorer.score(prompt, split_words(prompt), ANCHORS)
    scorer.score("star", split_words("star"), ("vivid",))
    assert seen.count(ANCHORS) == 1
    assert seen.count(("vivid",)) == 1


def test_a_text_encoder_in_half_precision_is_averaged_in_single(tokenizer, text_encoder):
    import copy

    half = copy.deepcopy(text_encoder).to(torch.bfloat16)
    words = split_words("red star")
    scores = ClipScorer(tokenizer, half).score("", words, ANCHORS)
    exact = ClipScorer(tokenizer, text_encoder).score("", words, ANCHORS)
    assert ClipScorer(tokenizer, half).embed(["red"]).dtype == torch.float32
    assert scores == pytest.approx(exact, abs=0.05)


def test_no_gradient_is_recorded_and_no_words_need_no_encoder(tokenizer, text_encoder):
    assert not ClipScorer(tokenizer, text_encoder).embed(["red"]).requires_grad
    assert ClipScorer(None, None).score("", (), ANCHORS) == ()


def test_a_text_without_content_tokens_scores_zero(tokenizer, text_encoder):
    assert not ClipScorer(tokenizer, text_encoder).embed([""]).any()
