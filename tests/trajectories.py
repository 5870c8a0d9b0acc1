"""Latents of whole runs, compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def follows(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Whether all steps' latents are the same to 1e-4 of their range."""
    assert len(found) == len(expected) > 0
    return all((x - y).abs().max() <= 1e-4 * y.abs().max() for x, y in zip(found, expected, strict=True))
