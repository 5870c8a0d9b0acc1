"""The background cache: every layer's keys and values, or part outputs, of all N tokens, kept on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from accelaes_export.contract import GraphContract
from accelaes_export.dtypes import torch_dtype
from accelaes_export.runtime.buffers import StepBuffers


@dataclass
class _Segment:
    """Background rows of one focus count: whose they are, and whether the full tensors changed since."""

    index: torch.Tensor | None = None
    stale: bool = True


class BackgroundCache:
    """What is cached of one batch of images: keys and values (token form) or part outputs (component form).

    Dense steps write straight into the full tensors (they are the engine's output buffers). A sparse step reads the
    background's rows, gathered once for as long as neither the rows nor the full tensors change, into buffers that
    keep their addresses.

    Args:
        contract: the graph's tensor table.
        rows: B, guidance pairs included.
        device: where they are.
    """

    def __init__(self, contract: GraphContract, rows: int, device: torch.device) -> None:
        self._entries = contract.cache
        self._dtype = dtype = torch_dtype(contract.dtype)
        self._buffers = StepBuffers(device)
        self._segments: dict[int, _Segment] = {}  # by m
        self.full = {
            entry.name: torch.empty((rows, entry.heads, contract.tokens, entry.head_dim), device=device, dtype=dtype)
            for entry in contract.cache
        }

    def invalidate(self) -> None:
        """Call after the full tensors were written: gathered rows are out of date."""
        for segment in self._segments.values():
            segment.stale = True

    def fresh(self, n: int) -> dict[str, torch.Tensor]:
        """Buffers [B, Hkv, n, hd] for what a sparse step makes anew."""
        return {
            name: self._buffers.empty(name, (full.shape[0], full.shape[1], n, full.shape[3]), self._dtype)
            for name, full in self.full.items()
        }

    def write(self, focus_index: torch.Tensor, fresh: Mapping[str, torch.Tensor]) -> None:
        """Write a sparse step's cached tensors [B, Hkv, n, hd] back at focus_index [B, n]."""
        for entry in self._entries:
            index = focus_index[:, None, :, None].expand(-1, entry.heads, -1, entry.head_dim)
            self.full[entry.name].scatter_(2, index, fresh[entry.name])
        self.invalidate()

    def background(self, background_index: torch.Tensor) -> dict[str, torch.Tensor]:
        """The engine inputs ``<name>_bg`` [B, Hkv, m, hd] at background_index [B, m]; m may be 0."""
        B, m = background_index.shape
        segment = self._segments.setdefault(m, _Segment())
        rows: dict[int, torch.Tensor] = {}  # by head count: one index serves every layer
        inputs = {}
        for entry in self._entries:
            full = self.full[entry.name]
            heads, N, hd = full.shape[1:]
            target = self._buffers.empty(f"{entry.name}_bg", (B, heads, m, hd), self._dtype)
            inputs[f"{entry.name}_bg"] = target
            if not m or not (segment.stale or background_index is not segment.index):
                continue
            if heads not in rows:
                base = torch.arange(B * heads, device=full.device).reshape(B, heads, 1) * N
                rows[heads] = (base + background_index[:, None, :]).reshape(-1)
            # Whole hd-wide rows are copied: several times faster than an elementwise gather.
            torch.index_select(full.view(-1, hd), 0, rows[heads], out=target.view(-1, hd))
        segment.index, segment.stale = background_index, False
        return inputs
