"""What a metric is: a function of a `Sample`, a picture and what is known of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from accelaes_export.errors import InputError
from accelaes_export.measure.quality.report import Better, MetricAbout

if TYPE_CHECKING:
    from PIL.Image import Image

    from accelaes_export.contract.manifest import Manifest
    from accelaes_export.runtime.report import RunReport

Pooling = Literal["mean", "PSNR of the mean squared error"]
MEAN_ERROR: Pooling = "PSNR of the mean squared error"


@dataclass(frozen=True)
class Sample:
    """A picture and what is known of it.

    Attributes:
        frames: the picture, or a video's frames; RGB.
        dense: dense's frames of the same prompt and seed; None for dense itself.
        report: of the run that made it: plan, words, focus tokens, affinity.
        manifest: of the bundle: geometry, buckets.
    """

    prompt: str
    seed: int
    frames: Sequence[Image]
    dense: Sequence[Image] | None
    report: RunReport
    manifest: Manifest


@dataclass(frozen=True)
class Metric:
    """Something measured on a picture.

    Attributes:
        name: what `--metrics` calls it, and the key in rows; letters, digits, '-' and '_'.
        measure: the figure, or None where the metric says nothing of this picture.
        title: a column's head; the name if ''.
        better: which way is good.
        to_dense: a distance to dense's picture: `measure` isn't asked about dense itself.
        pooled: how pictures become one figure.
        source: the definition, or library, version and weights.
    """

    name: str
    measure: Callable[[Sample], float | None]
    title: str = ""
    better: Better = "higher"
    unit: str = ""
    to_dense: bool = False
    pooled: Pooling = "mean"
    source: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or re.fullmatch(r"[A-Za-z][\w-]*", self.name) is None:
            raise InputError(f"A metric is named {self.name!r}; give letters, digits, '-' and '_', a letter first.")

    def about(self) -> MetricAbout:
        """What reports say of it."""
        return MetricAbout(
            name=self.name,
            title=self.title or self.name,
            better=self.better,
            unit=self.unit,
            to_dense=self.to_dense,
            pooled=self.pooled,
            source=self.source,
        )


class MetricAbsentError(Exception):
    """A metric's library or weights aren't there: why, and what mends it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy
