"""From ids to a picture, natively: the same pictures as diffusers' pipeline makes of the bundle in Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from accelaes_export.bundle.reading import Bundle
from accelaes_export.policies import from_name
from accelaes_export.runtime.generate import generate, load_pipeline
from accelaes_export.runtime.prompts import PromptWeights, told
from tests.native.building import ONNXRUNTIME
from tests.native.library import Native, NativeBundle, NativeError, NativeRun

PROMPT = "an intricate red star on the left, plain blue background"
SHAPE = (1, 4, 24, 24)
HEIGHT, WIDTH = 48, 48


@pytest.fixture(scope="module")
def pipe(bundle: Bundle) -> Any:
    return load_pipeline(bundle)


def ids(pipe: Any, *texts: str) -> dict[str, np.ndarray]:
    """Rows of texts as SD3's pipelines pad them."""
    return {
        f"{name}.input_ids": getattr(pipe, name)(
            list(texts), padding="max_length", max_length=32, truncation=True, return_tensors="np"
        )["input_ids"].astype(np.int64)
        for name in ("tokenizer", "tokenizer_2")
    }


def noise(seed: int) -> np.ndarray:
    return torch.randn(SHAPE, generator=torch.Generator("cpu").manual_seed(seed)).numpy()


def begun(opened: NativeBundle, pipe: Any, preset: str, steps: int, **options: Any) -> NativeRun:
    """A run with the pipeline's own sigmas."""
    pipe.scheduler.set_timesteps(steps)
    sigmas, timesteps = (np.asarray(one, dtype=np.float32) for one in (pipe.scheduler.sigmas, pipe.scheduler.timesteps))
    return opened.run(sigmas, timesteps, preset=preset.encode(), steps=steps, **options)


@pytest.mark.parametrize("seed", [0, 1, 7, 42, 2**31, 2**32 - 1, 2**32 + 5, 2**63 - 1])
def test_a_seed_stands_for_the_noise_that_torch_draws_to_the_bit(opened: NativeBundle, pipe: Any, seed: int):
    run = begun(opened, pipe, "dense", 2, seed=seed)
    run.input(**ids(pipe, "", PROMPT))
    assert run.latents().tobytes() == noise(seed).tobytes()
    run.free()


@pytest.mark.parametrize("steps", [2, 9, 28])
def test_a_run_without_sigmas_has_the_schedulers(opened: NativeBundle, pipe: Any, steps: int):
    latents = []
    for make in (
        lambda: begun(opened, pipe, "dense", steps),
        lambda: opened.run(None, None, preset=b"dense", steps=steps),
    ):
        run, more = make(), True
        run.input(**ids(pipe, "", PROMPT))
        while more:
            _, more = run.next()
        latents.append(run.latents())
        run.free()
    assert np.array_equal(*latents)


@pytest.mark.parametrize(("preset", "seed"), [("accelaes", 0), ("drift:budget=12", 7)])
def test_a_picture_of_ids_is_the_pipelines(opened: NativeBundle, bundle: Bundle, pipe: Any, preset: str, seed: int):
    """test_prompts.py has all presets, from the prompt."""
    own = bundle.preset(preset)
    policy = from_name(own.policy, own.options)
    wanted = np.asarray(generate(bundle, PROMPT, policy=policy, steps=own.steps, seed=seed, pipe=pipe).image)
    mask = PromptWeights(bundle.manifest).weigh(pipe, told(PROMPT), 40, policy.word_scoring)
    run = begun(opened, pipe, preset, own.steps, seed=seed)
    run.input(token_weights=mask.weights.numpy(), **ids(pipe, "", PROMPT))
    more = True
    while more:
        _, more = run.next()
    (found,) = run.picture(HEIGHT, WIDTH)
    run.free()
    assert found.std() > 10, "there is something to see"
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1, "levels of 255"


def test_facts_say_that_it_encodes_and_how_large_pictures_are(opened: NativeBundle):
    assert opened.facts.encodes == 1
    assert (opened.facts.picture_height, opened.facts.picture_width) == (HEIGHT, WIDTH)


def test_several_rows_are_encoded_as_each_alone(opened: NativeBundle, bundle: Bundle, pipe: Any):
    """The conditioning isn't shown, so a step of its prediction is: dense steps of two prompts, guided and not."""
    latents = {}
    for texts in (("", PROMPT), (PROMPT,)):
        run = begun(opened, pipe, "dense", 2, unguided=len(texts) == 1)
        run.input(latents=noise(0), **ids(pipe, *texts))
        run.next()
        latents[len(texts)] = run.latents()
        run.free()
    assert np.abs(latents[1] - latents[2]).max() > 1e-3, "guidance moves them otherwise"
    masked = {name.replace("input_ids", "attention_mask"): np.ones_like(one) for name, one in ids(pipe, PROMPT).items()}
    run = begun(opened, pipe, "dense", 2, unguided=1)
    run.input(latents=noise(0), **ids(pipe, PROMPT), **masked)
    run.next()
    assert np.array_equal(run.latents(), latents[1]), "a mask of ones is none"
    run.free()


class TestRefused:
    @pytest.fixture
    def run(self, opened: NativeBundle, pipe: Any):
        run = begun(opened, pipe, "dense", 2)
        yield run
        run.free()

    def refused(self, run: NativeRun, said: str, **tensors: np.ndarray) -> None:
        with pytest.raises(NativeError, match=said) as error:
            run.input(latents=noise(0), **tensors)
        assert error.value.code == 2

    def test_ids_of_one_tokenizer_of_two(self, run: NativeRun, pipe: Any):
        given = ids(pipe, "", PROMPT)
        given.pop("tokenizer_2.input_ids")
        self.refused(
            run, r"no tensor tokenizer_2\.input_ids among those given, and the bundle's text_encoder_2", **given
        )

    def test_ids_of_too_few_rows(self, run: NativeRun, pipe: Any):
        self.refused(run, r"tokenizer\.input_ids is no int64 \[2, length\], a row for each", **ids(pipe, PROMPT))

    def test_a_shorter_text_than_the_engines_positions(self, run: NativeRun, pipe: Any):
        given = {name: one[:, :20] for name, one in ids(pipe, "", PROMPT).items()}
        self.refused(run, r"takes \(32 on axis 1\): pad them as the tokenizer", **given)

    def test_a_longer_one(self, run: NativeRun, pipe: Any):
        given = {name: np.tile(one, (1, 2)) for name, one in ids(pipe, "", PROMPT).items()}
        self.refused(run, r"has 64 ids a row, and the bundle's text_encoder takes 32", **given)

    def test_a_mask_without_ids_and_one_of_another_length(self, run: NativeRun, pipe: Any):
        ones = np.ones((2, 32), np.int64)
        self.refused(
            run, r"tokenizer\.attention_mask without tokenizer\.input_ids", **{"tokenizer.attention_mask": ones}
        )
        given = {**ids(pipe, "", PROMPT), "tokenizer.attention_mask": ones[:, :8]}
        self.refused(run, "has another length than the ids beside it", **given)

    def test_ids_beside_what_they_would_become(self, run: NativeRun, pipe: Any):
        given = {**ids(pipe, "", PROMPT), "encoder_hidden_states": np.zeros((2, 40, 192), np.float32)}
        self.refused(run, "encoder_hidden_states was given, and ids that it would be made of", **given)

    def test_an_id_that_is_no_word(self, run: NativeRun, pipe: Any):
        given = ids(pipe, "", PROMPT)
        given["tokenizer.input_ids"][0, 3] = 10**6
        with pytest.raises(NativeError, match="indices element out of data bounds|out of bounds"):
            run.input(latents=noise(0), **given)
        with pytest.raises(NativeError, match="no input yet|input first|has no input"):
            run.next()

    def test_room_for_another_picture_and_none_before_the_input(self, run: NativeRun, pipe: Any):
        with pytest.raises(NativeError, match=r"the input first|input first"):
            run.picture(HEIGHT, WIDTH)
        run.input(latents=noise(0), **ids(pipe, "", PROMPT))
        with pytest.raises(NativeError, match=r"The pictures are 6912 bytes, .* room for 3072"):
            run.picture(32, 32)

    def test_a_bundle_without_them(self, native: Native, shapes_bundle: Bundle, pipe: Any):
        opened = native.open(shapes_bundle.path, library=str(ONNXRUNTIME).encode(), threads=1)
        assert (opened.facts.encodes, opened.facts.picture_height) == (0, 0)
        run = begun(opened, pipe, "dense", 2)
        self.refused(
            run, "Ids were given, and the bundle has no text encoders; .* --components text", **ids(pipe, "", "")
        )
        with pytest.raises(NativeError, match="has no VAE to make pictures with; .* --components vae"):
            run.picture(HEIGHT, WIDTH)
        run.free()
        opened.close()
