"""CLIP score against its formula on a small model; scorers whose weights aren't here by stand-ins for their library."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from accelaes_export.measure.quality import preferences
from accelaes_export.measure.quality.metrics import MetricAbsentError, Sample
from accelaes_export.recipes import shipped_folder

CPU = torch.device("cpu")
SCORERS = {
    "image-reward": ("imscore.imreward.model", "ImageReward", preferences.image_reward),
    "hpsv2": ("imscore.hps.model", "HPSv2", preferences.hpsv2),
    "aesthetic": ("imscore.aesthetic.model", "LAIONAestheticScorer", preferences.aesthetic),
}


def sample(prompt: str, *seeds: int) -> Sample:
    frames = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 32, 3)).astype(np.uint8)) for seed in seeds
    ]
    return Sample(prompt, 1, frames, None, report=None, manifest=None)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=[1, -1])
def small_clip(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A CLIP of random weights with the shipped checkpoint's tokenizer, and one whose pictures are the opposite of its.

    Of the two, one finds pictures and prompts alike.
    """
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(shipped_folder("shipped:shapes") / "tokenizer")
    size: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    end = tokenizer.eos_token_id
    text = {**size, "vocab_size": len(tokenizer), "eos_token_id": end, "bos_token_id": tokenizer.bos_token_id}
    torch.manual_seed(0)
    text["max_position_embeddings"] = tokenizer.model_max_length
    vision = {**size, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model.visual_projection.weight.data *= request.param
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_clip_score_is_100_times_the_cosine_of_picture_and_prompt_and_never_negative(small_clip: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    metric = preferences.clip_score(CPU, str(small_clip))
    model = CLIPModel.from_pretrained(small_clip).eval().double()
    processor = CLIPProcessor.from_pretrained(small_clip)
    for prompt in ("a red star", "an intricate blue heart on the left, black background"):
        for seeds in ((1,), (2, 3, 4)):
            asked = sample(prompt, *seeds)
            tokens = processor.tokenizer([prompt], return_tensors="pt")
            pixels = processor.image_processor(asked.frames, return_tensors="pt")["pixel_values"].double()
            with torch.inference_mode():
                texts = model.text_projection(model.text_model(**tokens).pooler_output)
                pictures = model.visual_projection(model.vision_model(pixels).pooler_output)
            cosines = torch.nn.functional.cosine_similarity(pictures, texts).tolist()
            assert all(abs(cosine) > 0.01 for cosine in cosines)
            expected = 100 * sum(max(0.0, cosine) for cosine in cosines) / len(seeds)
            assert metric.measure(asked) == pytest.approx(expected, abs=1e-3)


def test_clip_reads_as_much_of_a_long_prompt_as_it_can(small_clip: Path) -> None:
    metric = preferences.clip_score(CPU, str(small_clip))
    assert metric.measure(sample("a red star and " * 200, 1)) is not None


def test_clip_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it went to the network"))
    with pytest.raises(MetricAbsentError, match="nobody/nothing aren't there") as caught:
        preferences.clip_score(CPU, "nobody/nothing")
    assert caught.value.remedy == "hf download nobody/nothing"


class Scorer(torch.nn.Module):
    """What imscore's scorers have in common."""

    loaded: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    @classmethod
    def from_pretrained(cls, location: str, **options: Any) -> Scorer:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        with pytest.raises((LocalEntryNotFoundError, HfHubHTTPError, OSError)):
            snapshot_download("some/part")  # as scorers do by themselves
        cls.loaded.append((location, options))
        return cls()

    def score(self, pixels: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        assert pixels.dtype == torch.float32 and not self.training and len(pixels) == len(prompts)
        assert 0 <= pixels.min() and pixels.max() <= 1
        return pixels.mean(dim=(1, 2, 3))[:, None] + float(len(prompts[0]))


@pytest.fixture
def imscore(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """imscore with stand-in scorers; the set says whose weights are stored."""
    stored: set[str] = set()
    for module, scorer, _ in SCORERS.values():
        fake = ModuleType(module)
        setattr(fake, scorer, Scorer)
        monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.setattr(preferences, "_is_stored", stored.__contains__)
    monkeypatch.setattr(preferences.metadata, "version", lambda package: "0")
    monkeypatch.setattr(Scorer, "loaded", [])
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("it went to the network"))
    return stored


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_needs_all_weights_it_would_load_and_names_those_that_lack(name: str, imscore: set[str]) -> None:
    load = SCORERS[name][2]
    with pytest.raises(MetricAbsentError) as caught:
        load(CPU)
    wanted = caught.value.remedy.replace("hf download ", "").split(" && ")
    assert len(wanted) == 2 and all(location in caught.value.reason for location in wanted)
    imscore.add(wanted[0])
    with pytest.raises(MetricAbsentError) as caught:
        load(CPU)
    assert caught.value.remedy == f"hf download {wanted[1]}"
    imscore.add(wanted[1])
    metric = load(CPU)
    assert metric.name == name
    assert Scorer.loaded == [(wanted[0], {"local_files_only": True})]


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_gets_pictures_and_the_prompt_for_each_frame(name: str, imscore: set[str]) -> None:
    imscore |= {"RE-N-Y/ImageReward", "bert-base-uncased", "RE-N-Y/hpsv21"}
    imscore |= {"laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "RE-N-Y/laion-aesthetic", preferences.CLIP_MODEL}
    asked = sample("a red star", 1, 2)
    expected = np.mean([np.asarray(frame) / 255 for frame in asked.frames]) + len("a red star")
    assert SCORERS[name][2](CPU).measure(asked) == pytest.approx(expected, abs=1e-5)


def test_a_library_that_breaks_is_absent_with_its_own_words(imscore: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preferences, "_is_stored", lambda location: True)

    def broken(location: str, **_: Any) -> None:
        raise AttributeError("no such layer\nand more")

    monkeypatch.setattr(Scorer, "from_pretrained", broken)
    with pytest.raises(MetricAbsentError, match=r"can't load RE-N-Y/hpsv21 \(no such layer\)$"):
        preferences.hpsv2(CPU)


def test_what_the_hub_client_has_not_stored_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it went to the network"))
    assert not preferences._is_stored("nobody/nothing")
