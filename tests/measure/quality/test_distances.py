"""Distances and edges against loops over pixels in float64, and libraries that aren't there by fakes."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from accelaes_export.measure.quality import distances
from accelaes_export.measure.quality.metrics import MetricAbsentError, Sample

CPU = torch.device("cpu")


def image(seed: int, size: int = 16, span: int = 256) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, span, (size, size, 3)).astype(np.uint8))


def sample(frames: list[Image.Image], dense: list[Image.Image] | None) -> Sample:
    return Sample("a star", 1, frames, dense, report=None, manifest=None)  # type: ignore[arg-type]


@given(st.integers(0, 1000), st.integers(1, 3))
def test_psnr_is_that_of_all_pixels_channels_and_frames(seed: int, frames: int) -> None:
    ours, dense = ([image(seed + 7 * k + offset, 8) for k in range(frames)] for offset in (0, 3))
    squares = [
        ((a - b) / 255) ** 2
        for one, other in zip(ours, dense, strict=True)
        for a, b in zip(np.asarray(one).ravel().tolist(), np.asarray(other).ravel().tolist(), strict=True)
    ]
    expected = 10 * math.log10(len(squares) / math.fsum(squares))
    assert distances.PSNR.measure(sample(ours, dense)) == pytest.approx(expected)


def test_psnr_of_equal_pictures_is_infinite() -> None:
    assert distances.psnr([image(1)], [image(1)]) == math.inf


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(3, 9), st.sampled_from([20, 60, 256]))
def test_edge_density_is_the_share_of_pixels_above_the_threshold(seed: int, size: int, span: int) -> None:
    picture = image(seed, size, span)
    pixels = np.asarray(picture) / 255

    def luma(y: int, x: int) -> float:
        red, green, blue = pixels[min(max(y, 0), size - 1), min(max(x, 0), size - 1)]
        return 0.299 * red + 0.587 * green + 0.114 * blue

    edges = 0
    for y in range(size):
        for x in range(size):
            right = sum(w * (luma(y + d, x + 1) - luma(y + d, x - 1)) for d, w in ((-1, 1), (0, 2), (1, 1))) / 4
            down = sum(w * (luma(y + 1, x + d) - luma(y - 1, x + d)) for d, w in ((-1, 1), (0, 2), (1, 1))) / 4
            edges += math.hypot(right, down) > 0.1
    assert distances.EDGES.measure(sample([picture], None)) == pytest.approx(edges / size**2)


def test_edge_density_of_a_plain_picture_is_none_and_of_a_border_two_columns() -> None:
    plain = np.full((10, 10, 3), 90, np.uint8)
    assert distances.edge_density([Image.fromarray(plain)]) == 0
    plain[:, 5:] = 200
    assert distances.edge_density([Image.fromarray(plain)]) == pytest.approx(0.2)


@settings(max_examples=5)
@given(st.integers(0, 1000), st.integers(11, 20), st.integers(0, 120))
def test_ssim_is_the_definition(seed: int, size: int, noise: int) -> None:
    pytest.importorskip("torchmetrics")
    ours = image(seed, size)
    disturbed = np.asarray(ours) + np.random.default_rng(seed).integers(-noise, noise + 1, (size, size, 3))
    dense = Image.fromarray(disturbed.clip(0, 255).astype(np.uint8))
    found = distances.ssim(CPU).measure(sample([ours], [dense]))
    assert found == pytest.approx(ssim_by_definition(np.asarray(ours) / 255, np.asarray(dense) / 255), abs=1e-6)


def ssim_by_definition(ours: np.ndarray, dense: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, with an 11x11 Gaussian window around every pixel, borders mirrored; mean of
    all channels."""
    size = ours.shape[0]
    ours, dense = (np.pad(picture, ((5, 5), (5, 5), (0, 0)), mode="reflect") for picture in (ours, dense))
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    found = []
    for channel in range(3):
        for y in range(size):
            for x in range(size):
                a, b = (picture[y : y + 11, x : x + 11, channel] for picture in (ours, dense))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                both = (window * (a - mean_a) * (b - mean_b)).sum()
                likeness = (2 * mean_a * mean_b + 0.01**2) * (2 * both + 0.03**2)
                found.append(likeness / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)))
    return float(np.mean(found))


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def test_what_is_not_installed_is_named_with_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torchmetrics.functional.image", "torchmetrics.image.lpip")
    for load in (distances.ssim, distances.lpips):
        with pytest.raises(MetricAbsentError, match="torchmetrics") as caught:
            load(CPU)
        assert caught.value.remedy == 'pip install "accelaes-export[quality]"'


@pytest.fixture
def fake_lpips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """torchvision's weights enumeration and torchmetrics' network as stand-ins; the file its weights would lie in."""
    pytest.importorskip("torchmetrics.image")  # before the stand-ins, which it would look at when it is imported first

    class Network(torch.nn.Module):
        def __init__(self, net_type: str, normalize: bool) -> None:
            super().__init__()
            assert (net_type, normalize) == ("alex", True)
            assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"

        def forward(self, ours: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
            return (ours - dense).abs().mean()

    torchvision, models = ModuleType("torchvision"), ModuleType("torchvision.models")
    url = "https://download.pytorch.org/models/alexnet-owt-0.pth"
    models.AlexNet_Weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url=url))  # type: ignore[attr-defined]
    metrics = ModuleType("torchmetrics.image.lpip")
    metrics.LearnedPerceptualImagePatchSimilarity = Network  # type: ignore[attr-defined]
    for module in (torchvision, models, metrics):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / "alexnet-owt-0.pth"


def test_lpips_downloads_nothing(fake_lpips: Path) -> None:
    with pytest.raises(MetricAbsentError, match="weights aren't there") as caught:
        distances.lpips(CPU)
    assert str(fake_lpips) in caught.value.remedy and "https://" in caught.value.remedy


def test_lpips_hands_the_network_pictures_from_0_to_1_and_reads_tensors_alone(fake_lpips: Path) -> None:
    pytest.importorskip("torchmetrics")
    fake_lpips.touch()
    metric = distances.lpips(CPU)
    ours, dense = image(1), image(2)
    expected = np.abs(np.asarray(ours) / 255 - np.asarray(dense) / 255).mean()
    assert metric.measure(sample([ours], [dense])) == pytest.approx(expected, abs=1e-6)
    assert metric.better == "lower"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
