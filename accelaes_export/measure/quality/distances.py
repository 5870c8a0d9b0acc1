"""Metrics of pixels: distances to dense's picture, and edge density."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from accelaes_export.errors import first_line
from accelaes_export.measure.quality.metrics import MEAN_ERROR, Metric, MetricAbsentError, Sample

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

EDGE_THRESHOLD = 0.1
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_INSTALL = 'pip install "accelaes-export[quality]"'
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def pixels(frames: Sequence[Image]) -> NDArray[np.float64]:
    """[F, H, W, 3] in [0, 1]."""
    return np.stack([np.asarray(frame.convert("RGB"), dtype=np.float64) / 255 for frame in frames])


def psnr(frames: Sequence[Image], dense: Sequence[Image]) -> float:
    """Peak signal-to-noise ratio in dB over all pixels, channels and frames; infinite where all are equal."""
    error = float(np.square(pixels(frames) - pixels(dense)).mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def edge_density(frames: Sequence[Image]) -> float:
    """Share of pixels that lie on an edge: where luma's Sobel gradient is above EDGE_THRESHOLD.

    The gradient's components are scaled so that a step from black to white is 1; pictures go on at
    their borders as they end there.
    """
    luma = np.pad(pixels(frames) @ np.array(_LUMA), ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = luma[:, :, 2:] - luma[:, :, :-2]
    down = luma[:, 2:, :] - luma[:, :-2, :]
    x = (across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]) / 4
    y = (down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]) / 4
    return float((np.hypot(x, y) > EDGE_THRESHOLD).mean())


def _to_dense(sample: Sample) -> Sequence[Image]:
    assert sample.dense is not None, "distances aren't asked of dense itself"
    return sample.dense


PSNR = Metric(
    "psnr",
    lambda sample: psnr(sample.frames, _to_dense(sample)),
    title="PSNR",
    unit="dB",
    to_dense=True,
    pooled=MEAN_ERROR,
    source="of 8-bit RGB, to dense's picture",
)
EDGES = Metric(
    "edges",
    lambda sample: edge_density(sample.frames),
    title="edges",
    better="neither",
    source=f"share of pixels whose Sobel gradient of luma is above {EDGE_THRESHOLD}; the AccelAes paper doesn't define "
    "its own edge density, so published figures can't be compared",
)


def as_tensor(frames: Sequence[Image], device: torch.device) -> torch.Tensor:
    """[F, 3, H, W] fp32 in [0, 1]."""
    import torch

    return torch.from_numpy(pixels(frames)).permute(0, 3, 1, 2).float().contiguous().to(device)


def ssim(device: torch.device) -> Metric:
    """Structural similarity (Wang et al. 2004: Gaussian window of 11, σ = 1.5, borders mirrored), by torchmetrics."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as similarity
    except ImportError as error:
        raise MetricAbsentError("torchmetrics isn't installed", _INSTALL) from error

    def measure(sample: Sample) -> float:
        own, dense = (as_tensor(frames, device).double() for frames in (sample.frames, _to_dense(sample)))
        found = similarity(own, dense, data_range=1.0)
        assert not isinstance(found, tuple)  # the picture of similarities wasn't asked for
        return float(found)

    version = metadata.version("torchmetrics")
    return Metric("ssim", measure, title="SSIM", to_dense=True, source=f"torchmetrics {version}, to dense's picture")


def lpips(device: torch.device) -> Metric:
    """Learned perceptual similarity (Zhang et al. 2018) with AlexNet, through torchmetrics and torchvision."""
    import torch

    network = _lpips_network().to(device)

    def measure(sample: Sample) -> float:
        own, dense = (as_tensor(frames, device) for frames in (sample.frames, _to_dense(sample)))
        with torch.inference_mode():
            return float(network(own, dense))

    version = metadata.version("torchmetrics")
    source = f"AlexNet, torchmetrics {version}, to dense's picture"
    return Metric("lpips", measure, title="LPIPS", better="lower", to_dense=True, source=source)


def lpips_between() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The same of two batches of pictures [b, 3, H, W] in [0, 1], on the CPU and with a gradient: [b].

    Raises:
        MetricAbsentError: its library or weights aren't there.
    """
    import torch

    network = _lpips_network().requires_grad_(False)

    def between(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        pairs = zip(found.split(1), wanted.split(1), strict=True)
        return torch.stack([network(own, dense) for own, dense in pairs])

    return between


def _lpips_network() -> torch.nn.Module:
    """Raises MetricAbsentError where its library or weights aren't there."""
    import torch

    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        from torchvision.models import AlexNet_Weights
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision made for another torch
        reason = f"torchmetrics or torchvision can't be imported ({first_line(error)})"
        raise MetricAbsentError(reason, _INSTALL) from error
    url = str(AlexNet_Weights.IMAGENET1K_V1.url)
    weights = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not weights.is_file():
        raise MetricAbsentError("AlexNet's weights aren't there", f"download {url} to {weights}")
    with tensors_alone():
        network: torch.nn.Module = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    return network


@contextmanager
def tensors_alone() -> Iterator[None]:
    """Libraries that read weights in the block get tensors and nothing else out of them: no code is run."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


METRICS: dict[str, Callable[[torch.device], Metric]] = {
    "psnr": lambda _: PSNR,
    "ssim": ssim,
    "lpips": lpips,
    "edges": lambda _: EDGES,
}
"""By what `--metrics` calls them. A new one is a function above and a line here."""
