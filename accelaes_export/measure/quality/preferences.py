"""Metrics of what people might prefer: CLIP score, ImageReward, HPSv2 and the LAION aesthetic score.

Each is a published network through a library that keeps it, with the weights the hub's client has already stored;
nothing is downloaded. A video's score is the mean over its frames.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

from accelaes_export.errors import first_line
from accelaes_export.measure.quality.distances import as_tensor, tensors_alone
from accelaes_export.measure.quality.metrics import Metric, MetricAbsentError, Sample

if TYPE_CHECKING:
    import torch

CLIP_MODEL = "openai/clip-vit-large-patch14"
_INSTALL = 'pip install "accelaes-export[quality]"'


def clip_score(device: torch.device, location: str = CLIP_MODEL) -> Metric:
    """CLIP score (Hessel et al. 2021, unscaled as in the papers): 100 max(0, cos) of picture and prompt.

    Args:
        location: a hub id or a folder, with a CLIPModel and its processor.
    """
    import torch
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(location, local_files_only=True, use_safetensors=True)
        processor = CLIPProcessor.from_pretrained(location, local_files_only=True)
    except (OSError, ImportError) as error:
        raise MetricAbsentError(f"the weights of {location} aren't there", f"hf download {location}") from error
    model = model.eval().to(device)

    def measure(sample: Sample) -> float:
        model_inputs = processor(
            text=[sample.prompt],
            images=[frame.convert("RGB") for frame in sample.frames],
            return_tensors="pt",
            truncation=True,  # CLIP reads 77 tokens; the rest of a longer prompt counts for nothing
            padding=True,
        ).to(device)
        with torch.inference_mode():
            output = model(**model_inputs)
        cosines = output.image_embeds @ output.text_embeds.T  # [F, 1]; both have length 1
        return float(100 * cosines.clamp(min=0).mean())

    version = metadata.version("transformers")
    return Metric("clip", measure, title="CLIP", source=f"100 max(0, cos), {location}, transformers {version}")


def image_reward(device: torch.device) -> Metric:
    """ImageReward v1.0 (Xu et al. 2023) through imscore."""
    weights = ("RE-N-Y/ImageReward", "bert-base-uncased")
    return _imscore(device, "image-reward", "IR", "imscore.imreward.model", "ImageReward", weights)


def hpsv2(device: torch.device) -> Metric:
    """Human Preference Score v2.1 (Wu et al. 2023) through imscore."""
    weights = ("RE-N-Y/hpsv21", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    return _imscore(device, "hpsv2", "HPS", "imscore.hps.model", "HPSv2", weights)


def aesthetic(device: torch.device) -> Metric:
    """The LAION aesthetic score (v2, linear head on CLIP ViT-L/14) through imscore."""
    weights = ("RE-N-Y/laion-aesthetic", CLIP_MODEL)
    return _imscore(device, "aesthetic", "aesth", "imscore.aesthetic.model", "LAIONAestheticScorer", weights)


def _imscore(device: torch.device, name: str, title: str, module: str, scorer: str, weights: tuple[str, ...]) -> Metric:
    """A scorer of imscore's, whose `score` takes pictures [F, 3, H, W] in [0, 1] and as many prompts.

    Args:
        weights: hub ids of all it loads, its own first.
    """
    import torch

    try:
        kind: Any = getattr(importlib.import_module(module), scorer)
    except Exception as error:  # whatever a package of other versions raises when it is imported
        raise MetricAbsentError(f"imscore can't be imported ({first_line(error)})", _INSTALL) from error
    missing = [location for location in weights if not _is_stored(location)]
    if missing:
        commands = " && ".join(f"hf download {location}" for location in missing)
        raise MetricAbsentError(f"the weights of {' and '.join(missing)} aren't there", commands)
    try:
        with tensors_alone(), _hub_offline():
            model = kind.from_pretrained(weights[0], local_files_only=True).eval().to(device)
    except Exception as error:
        raise MetricAbsentError(
            f"imscore can't load {weights[0]} ({first_line(error)})", f"hf download {weights[0]}, or another imscore"
        ) from error

    def measure(sample: Sample) -> float:
        with torch.inference_mode():
            scores = model.score(as_tensor(sample.frames, device), [sample.prompt] * len(sample.frames))
        return float(scores.double().mean())

    source = f"{weights[0]}, imscore {metadata.version('imscore')}"
    return Metric(name, measure, title=title, source=source)


@contextmanager
def _hub_offline() -> Iterator[None]:
    """The hub's client stays offline in the block: scorers load parts of theirs by names, and would look for newer."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_stored(location: str) -> bool:
    """Whether the hub's client has a snapshot of `location` on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot_download(location, local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        return False
    return True


METRICS: dict[str, Callable[[torch.device], Metric]] = {
    "clip": clip_score,
    "image-reward": image_reward,
    "hpsv2": hpsv2,
    "aesthetic": aesthetic,
}
"""By what `--metrics` calls them."""
