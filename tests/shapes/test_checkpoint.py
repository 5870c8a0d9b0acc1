"""The shipped checkpoint: small, plain safetensors, loadable by diffusers, and it draws what is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors import safe_open

from examples.shapes import judge
from examples.shapes.captions import GRAMMAR_WORDS, PUNCTUATION, WORDS, heldout_prompts, parse
from examples.shapes.drawing import draw
from examples.shapes.evaluate import accuracy, load_pipeline, picture_is_right, sample
from examples.shapes.scenes import heldout_scenes

CHECKPOINT = Path(__file__).parents[2] / "engines" / "checkpoints" / "shapes"


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusion3Pipeline:
    return load_pipeline(CHECKPOINT)


def test_the_checkpoint_is_small_and_holds_nothing_but_json_text_and_safetensors() -> None:
    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".txt", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 10_500_000
    for path in (*CHECKPOINT.rglob("*.safetensors"), judge.WEIGHTS):
        with safe_open(path, "pt") as file:
            kept = "F32" if "encoder" in path.parent.name else "F16"  # transformers computes in the file's type
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {kept}, path  # noqa: SIM118
    assert judge.WEIGHTS.stat().st_size < 1_000_000


def test_every_known_word_is_one_token_and_tokens_know_their_place_in_the_prompt(
    pipeline: StableDiffusion3Pipeline,
) -> None:
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        assert set(GRAMMAR_WORDS) <= set(WORDS)
        for word in (*WORDS, *PUNCTUATION):
            assert len(tokenizer(word).input_ids) == 3, word  # begin, the word, end
        assert tokenizer.is_fast
        assert tokenizer.model_max_length == pipeline.tokenizer_max_length == 32
        assert tokenizer.eos_token_id != 2  # transformers would pool another token
        prompt = "an Intricate red star"
        places = tokenizer(prompt, return_offsets_mapping=True).offset_mapping
        assert [prompt[start:end] for start, end in places[1:-1]] == prompt.split()


def test_the_longest_held_out_prompt_is_not_truncated(pipeline: StableDiffusion3Pipeline) -> None:
    lengths = [len(pipeline.tokenizer(prompt).input_ids) for prompt in heldout_prompts(512)]
    assert max(lengths) <= 32


def test_the_judge_reads_drawings_it_never_saw() -> None:
    scenes = heldout_scenes(256, seed=3)
    pictures, _ = draw(scenes, torch.Generator().manual_seed(3))
    figures = accuracy(scenes, judge.read(judge.load(), pictures))
    assert min(figures[field] for field in ("shape", "colour", "aesthetic", "picture", "background")) > 0.97, figures


PROMPTS = (
    "an intricate red star on the left, plain blue background",
    "a large glossy green circle in the center, graded gray background",
    "a purple heart at the top and a large yellow square at the bottom, plain black background",
    "a big orange triangle on the right with a detailed cyan cross on the left on a solid beige background",
)


@pytest.mark.parametrize(("prompts", "max_sequence_length"), [(PROMPTS, 8), (PROMPTS[:1], 256)])
def test_prompts_are_drawn_as_asked(
    pipeline: StableDiffusion3Pipeline, prompts: tuple[str, ...], max_sequence_length: int
) -> None:
    pictures = sample(pipeline, prompts, seed=0, max_sequence_length=max_sequence_length)
    readings = judge.read(judge.load(), pictures)
    for prompt, reading in zip(prompts, readings, strict=True):
        assert picture_is_right(parse(prompt), reading), (prompt, reading)
