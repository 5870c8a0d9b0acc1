"""From a prompt to a picture natively: the same words, weights and pictures as in Python."""

from __future__ import annotations

import fcntl
import gc
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accelaes_export import recipes
from accelaes_export.building.builder import build
from accelaes_export.bundle.reading import Bundle
from accelaes_export.policies import from_name
from accelaes_export.policies.anchors import ANCHORS
from accelaes_export.runtime.generate import generate, load_pipeline
from accelaes_export.runtime.prompts import PromptWeights, told
from tests.native.building import ONNXRUNTIME, shared
from tests.native.conftest import PRESETS
from tests.native.library import Native, NativeBundle, NativeError, NativeRun

PROMPT = "an intricate red star on the left, plain blue background"
OTHERS = (PROMPT, "two glossy green circles, vibrant (yellow square:1.3)", "a detailed blue ring")
HEIGHT, WIDTH = 48, 48


@pytest.fixture(scope="module")
def pipe(bundle: Bundle) -> Any:
    return load_pipeline(bundle)


@pytest.fixture(scope="module")
def scored_by_clip(shapes_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Three images a run, words scored by the bundle's CLIP encoder against the paper's anchors."""
    changes = {"token_scorer": "clip", "anchors": ANCHORS, "batch": 3}
    recipe = recipes.load("shapes").model_copy(update=changes)
    folder = shared(tmp_path_factory) / "clip"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build(model=recipe, output=folder, presets=("dense", "accelaes", "drift:budget=12"), components="all")


@pytest.fixture(scope="module")
def opened_clip(native: Native, scored_by_clip: Bundle) -> NativeBundle:
    return native.open(scored_by_clip.path, library=str(ONNXRUNTIME).encode(), threads=1)


def drawn(run: NativeRun, images: int = 1) -> np.ndarray:
    more = True
    while more:
        _, more = run.next()
    return run.picture(HEIGHT, WIDTH, images)


def levels_apart(found: np.ndarray, wanted: Any) -> int:
    assert found.std() > 10, "there is something to see"
    return int(np.abs(found.astype(int) - np.asarray(wanted).astype(int)).max())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("seed", [0, 7])
def test_a_prompts_picture_is_the_pipelines(opened: NativeBundle, bundle: Bundle, pipe: Any, preset: str, seed: int):
    own = bundle.preset(preset)
    policy = from_name(own.policy, own.options)
    wanted = generate(bundle, PROMPT, policy=policy, steps=own.steps, seed=seed, pipe=pipe).image
    run = opened.run(None, None, preset=preset.encode(), seed=seed)
    run.prompt(PROMPT)
    assert levels_apart(drawn(run)[0], wanted) <= 1, "levels of 255"
    run.free()


def test_a_negative_prompt_and_each_tokenizers_own(opened: NativeBundle, bundle: Bundle, pipe: Any):
    given = {"text": PROMPT, "negative": "blurry", "text_2": "a green ring", "negative_2": "dull"}
    wanted = pipe_of(bundle, pipe)(
        PROMPT,
        negative_prompt="blurry",
        prompt_2="a green ring",
        negative_prompt_2="dull",
        prompt_3=PROMPT,
        negative_prompt_3="blurry",
        **size(bundle, 4),
    ).images[0]
    run = opened.run(None, None, preset=b"dense", seed=4)
    run.prompt(given)
    assert levels_apart(drawn(run)[0], wanted) <= 1
    run.free()


def pipe_of(bundle: Bundle, pipe: Any) -> Any:
    import accelaes_export as ax

    return ax.accelerate(pipe, bundle, policy="dense")


def size(bundle: Bundle, seed: int) -> dict[str, Any]:
    import torch

    defaults = bundle.manifest.defaults
    return {
        "height": HEIGHT,
        "width": WIDTH,
        "num_inference_steps": bundle.preset("dense").steps,
        "guidance_scale": defaults.guidance,
        "generator": torch.Generator("cpu").manual_seed(seed),
        "max_sequence_length": 8,
    }


def test_words_and_what_they_weigh_are_shown(opened: NativeBundle, bundle: Bundle, pipe: Any):
    run = opened.run(None, None, preset=b"accelaes")
    run.prompt("two glossy green circles, vibrant (yellow square:1.3)")
    weighed = PromptWeights(bundle.manifest).weigh(pipe, told(OTHERS[1]), 40, from_name("accelaes").word_scoring)
    (words,) = weighed.words
    assert run.words() == list(zip(words.words, words.weights, strict=True)) and run.words(1) == []
    run.input(latents=np.zeros((1, 4, 24, 24), np.float32), **conditioning())
    assert run.words() == [], "they were given none"
    run.free()


def conditioning() -> dict[str, np.ndarray]:
    return {
        "encoder_hidden_states": np.zeros((2, 40, 192), np.float32),
        "pooled_projections": np.zeros((2, 192), np.float32),
        "token_weights": np.ones((1, 40), np.float32),
    }


@pytest.mark.parametrize("preset", ["accelaes", "drift:budget=12"])
def test_three_prompts_at_once_scored_by_clip_are_pythons(
    opened_clip: NativeBundle, scored_by_clip: Bundle, preset: str
):
    import torch

    import accelaes_export as ax

    own = scored_by_clip.preset(preset)
    policy = from_name(own.policy, own.options)
    pipe = load_pipeline(scored_by_clip)
    generator = torch.Generator("cpu").manual_seed(11)
    given = size(scored_by_clip, 11) | {"num_inference_steps": own.steps, "generator": generator}
    wanted = ax.accelerate(pipe, scored_by_clip, policy=policy)(list(OTHERS), **given).images
    run = opened_clip.run(None, None, preset=preset.encode(), images=3, seed=11)
    run.prompt(*OTHERS)
    found = drawn(run, 3)
    for k in range(3):
        assert levels_apart(found[k], wanted[k]) <= 1
    if preset == "accelaes":
        text = PromptWeights(scored_by_clip.manifest).weigh(pipe, told(list(OTHERS)), 40, policy.word_scoring)
        for k, words in enumerate(text.words):
            assert words.scorer == "clip" and [word for word, _ in run.words(k)] == list(words.words)
            assert [weight for _, weight in run.words(k)] == pytest.approx(words.weights, abs=1e-6)
    run.free()


def test_fewer_prompts_than_images_are_each_of_several(opened_clip: NativeBundle):
    alike, each = (opened_clip.run(None, None, preset=b"accelaes", images=3, seed=2) for _ in range(2))
    alike.prompt(PROMPT)
    each.prompt(PROMPT, PROMPT, PROMPT)
    assert np.array_equal(drawn(alike, 3), drawn(each, 3)) and alike.words(2) == each.words(0)
    alike.free(), each.free()


def test_latents_may_be_given_beside_a_prompt(opened: NativeBundle):
    run = opened.run(None, None, preset=b"dense", seed=9)
    run.prompt(PROMPT)
    drawn_from_seed = run.latents()
    other = opened.run(None, None, preset=b"dense", seed=1)
    other.prompt(PROMPT, tensors={"latents": drawn_from_seed.reshape(1, 4, 24, 24)})
    assert np.array_equal(drawn(run), drawn(other))
    run.free(), other.free()


def test_memory_stays_flat_over_pictures(opened: NativeBundle):
    """A thousand by hand: docs/embedding.md."""
    sizes = []
    for k in range(60):
        run = opened.run(None, None, preset=b"dense", steps=2, seed=k)
        run.prompt(f"{k} red stars")
        drawn(run)
        run.free()
        if k % 10 == 9:
            gc.collect()
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    assert sizes[-1] - sizes[1] < 8e6, sizes


class TestRefused:
    @pytest.fixture
    def run(self, opened: NativeBundle):
        run = opened.run(None, None, preset=b"accelaes")
        yield run
        run.free()

    def refused(self, run: NativeRun, said: str, *texts: Any, **options: Any) -> None:
        with pytest.raises(NativeError, match=said) as error:
            run.prompt(*texts, **options)
        assert error.value.code == 2
        with pytest.raises(NativeError, match="has no input yet"):
            run.next()

    def test_no_prompt_and_too_many(self, run: NativeRun):
        self.refused(run, "0 prompts were given, and the run makes 1 images; give one for each")
        self.refused(run, "2 prompts were given, and the run makes 1", PROMPT, PROMPT)

    def test_a_prompt_without_text(self, run: NativeRun):
        self.refused(run, "Prompt 0 has no text; give one", {"negative": "dull"})

    @pytest.mark.parametrize("text", ["", "\U0001f600", "..."])
    def test_a_prompt_none_of_whose_words_weighs_more(self, run: NativeRun, text: str):
        if text:
            run.prompt(text)  # its marks weigh nothing, so the text still weighs more
        else:
            self.refused(run, 'Nothing in the prompt "" can weigh more than the rest; take a preset', text)

    def test_text_that_is_no_utf8(self, run: NativeRun):
        from ctypes import c_size_t

        from tests.native.library import Prompt

        prompt = (Prompt * 1)(Prompt(text=b"a \xff"))
        with pytest.raises(NativeError, match="A prompt is no UTF-8 at byte 2; encode it so") as error:
            run.native.check(run.native.lib.accelaes_run_prompt(run.handle, prompt, c_size_t(1), None, c_size_t(0)))
        assert error.value.code == 2

    def test_a_prompt_of_a_novels_length(self, run: NativeRun):
        self.refused(run, "A prompt has 1500000 bytes; give at most a million", "a" * 1_500_000)

    def test_a_prompt_and_ids(self, run: NativeRun):
        ids = {f"{name}.input_ids": np.ones((2, 32), np.int64) for name in ("tokenizer", "tokenizer_2")}
        self.refused(run, "A prompt was given, and ids; give one of them", PROMPT, tensors=ids)

    def test_a_bundle_without_text_encoders(self, native: Native, shapes_bundle: Bundle):
        opened = native.open(shapes_bundle.path, library=str(ONNXRUNTIME).encode(), threads=1)
        run = opened.run([1.0] * 29, [1.0] * 28, preset=b"dense")
        self.refused(run, "A prompt was given, and the bundle has no text encoders; .* --components all", PROMPT)
        run.free()
        opened.close()
