"""Prompt by prompt: dense against every policy's picture, where it looked, and the words behind it.

Prompts are shown in the file's order, none is picked; as many as fit into the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelaes_export.contract.geometry import Latents
from accelaes_export.measure.quality.report import DENSE, ImageRow
from accelaes_export.measure.report.images import data_uri, heat_map, read_image

LARGEST = 3_000_000
"""Characters of all pictures together."""
_SIDES = (512, 256, 128, 64)
_SMALL = 200  # pixels


@dataclass(frozen=True)
class Shown:
    """One policy's picture. `picture`, `mask` and `heat` are data URIs; the last two are '' where there is none.

    `small` pictures are enlarged on the page, and keep every pixel as it is.
    """

    row: ImageRow
    picture: str
    mask: str
    heat: str
    small: bool

    @property
    def weighed(self) -> list[tuple[str, float]]:
        """The words behind the mask and their weights; empty where the policy has none."""
        words = self.row.words
        return [] if words is None else list(zip(words.words, words.weights, strict=True))

    @property
    def size(self) -> int:
        return len(self.picture) + len(self.mask) + len(self.heat)


@dataclass(frozen=True)
class Scene:
    """One prompt and seed: dense's picture and the policies' in the order they were asked for."""

    prompt: str
    prompt_index: int
    seed: int
    dense: Shown
    others: tuple[Shown, ...]
    cut: str
    small: bool

    @property
    def size(self) -> int:
        return self.dense.size + sum(shown.size for shown in self.others)


def gallery(rows: Sequence[ImageRow], folder: Path, latents: Latents, largest: int = LARGEST) -> tuple[Scene, ...]:
    """As many prompts, each with its first seed, as fit into `largest` characters; smaller pictures before none.

    Args:
        rows: of the whole evaluation; prompts without a dense picture are left out.
        folder: that their files are relative to.

    Raises:
        InputError: a picture that is not there.
    """
    prompts: dict[int, int] = {}
    for row in sorted(rows, key=lambda row: (row.prompt_index, row.seed)):
        if row.policy == DENSE:
            prompts.setdefault(row.prompt_index, row.seed)
    for side in _SIDES:
        scenes: list[Scene] = []
        left = largest
        for index, seed in prompts.items():
            scene = _scene([r for r in rows if (r.prompt_index, r.seed) == (index, seed)], folder, latents, side)
            left -= scene.size
            if left < 0:
                break
            scenes.append(scene)
        if scenes:
            return tuple(scenes)
    return ()


def _scene(rows: Sequence[ImageRow], folder: Path, latents: Latents, side: int) -> Scene:
    shown = {row.policy: _shown(row, folder, latents, side) for row in rows}
    dense = shown.pop(DENSE)
    cut = next((row.cut for row in rows if row.cut), "")
    return Scene(
        dense.row.prompt, dense.row.prompt_index, dense.row.seed, dense, tuple(shown.values()), cut, dense.small
    )


def _shown(row: ImageRow, folder: Path, latents: Latents, side: int) -> Shown:
    import torch

    from accelaes_export.runtime.images import mask_overlay

    picture = read_image(folder / row.file, side)
    small = max(picture.size) < _SMALL
    mask = heat = ""
    rows, columns = latents.grid
    if row.focus_index is not None:
        first_frame = [token for token in row.focus_index if token < rows * columns]
        overlay = mask_overlay(picture, torch.tensor(first_frame, dtype=torch.int64), latents.grid)
        mask = data_uri(overlay, exact=small)
    if row.affinity is not None:
        heat = data_uri(heat_map(row.affinity, latents.grid), exact=True)
    return Shown(row, data_uri(picture, exact=small), mask, heat, small)
