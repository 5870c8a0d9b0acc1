"""Tensors an engine reads and writes at every step, made once: engines that bind addresses see the same ones."""

from __future__ import annotations

import torch


class StepBuffers:
    """Device tensors by name and shape, kept for a trajectory's life."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tensors: dict[tuple[str, tuple[int, ...], torch.dtype], torch.Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A contiguous tensor to be written into; the same one for the same name, shape and dtype."""
        key = (name, tuple(shape), dtype)
        if key not in self._tensors:
            self._tensors[key] = torch.empty(shape, device=self._device, dtype=dtype)
        return self._tensors[key]

    def holding(self, name: str, source: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A tensor with the values of `source`, brought to the device and dtype."""
        return self.empty(name, tuple(source.shape), dtype).copy_(source)
