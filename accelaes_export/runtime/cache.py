"""The background cache: every layer's keys and values of all N tokens, kept on the device between steps."""

from __future__ import annotations

import torch

from accelaes_export.contract import GraphContract


class BackgroundCache:
    """Keys and values of one batch of images.

    Dense steps write straight into the full tensors (they are the engine's output buffers). A sparse step reads
    the background rows, gathered into buffers that keep their address as long as n stays the same, so that
    engines that bind addresses (TensorRT, CUDA graphs) see the same ones at every step.

    Args:
        contract: the graph's tensor table.
        rows: B, guidance pairs included.
        device, dtype: of keys and values.
    """

    def __init__(self, contract: GraphContract, rows: int, device: torch.device, dtype: torch.dtype) -> None:
        self._entries = contract.cache
        self._rows = rows
        N = contract.tokens
        self.full = {
            entry.name: torch.empty((rows, entry.heads, N, entry.head_dim), device=device, dtype=dtype)
            for entry in contract.cache
        }
        self._gathered: dict[str, torch.Tensor] = {}
        self._index: torch.Tensor | None = None  # the background_index the gathered segments belong to
        self._stale = True

    def invalidate(self) -> None:
        """Call after the full tensors were written: gathered segments are out of date."""
        self._stale = True

    def write(self, focus_index: torch.Tensor, fresh: dict[str, torch.Tensor]) -> None:
        """Write a sparse step's keys and values [B, Hkv, n, hd] back at focus_index [B, n]."""
        for entry in self._entries:
            index = focus_index[:, None, :, None].expand(-1, entry.heads, -1, entry.head_dim)
            self.full[entry.name].scatter_(2, index, fresh[entry.name])
        self.invalidate()

    def background(self, background_index: torch.Tensor) -> dict[str, torch.Tensor]:
        """The engine inputs ``<name>_bg`` [B, Hkv, m, hd] at background_index [B, m]; m may be 0."""
        if self._stale or background_index is not self._index:
            self._gather(background_index)
        return {f"{name}_bg": tensor for name, tensor in self._gathered.items()}

    def _gather(self, background_index: torch.Tensor) -> None:
        B, m = background_index.shape
        flat_rows: dict[int, torch.Tensor] = {}  # one index per head count serves every layer
        for entry in self._entries:
            full = self.full[entry.name]
            heads, N, hd = full.shape[1:]
            if heads not in flat_rows:
                base = torch.arange(B * heads, device=full.device).reshape(B, heads, 1) * N
                flat_rows[heads] = (base + background_index[:, None, :]).reshape(-1)
            target = self._gathered.get(entry.name)
            if target is None or target.shape[2] != m:
                target = full.new_empty((B, heads, m, hd))
                self._gathered[entry.name] = target
            # Whole hd-wide rows are copied: several times faster than an elementwise gather.
            torch.index_select(full.reshape(-1, hd), 0, flat_rows[heads], out=target.view(-1, hd))
        self._index, self._stale = background_index, False

    def buffers(self, n: int) -> dict[str, torch.Tensor]:
        """Empty tensors [B, Hkv, n, hd] for a sparse step's fresh keys and values."""
        return {
            name: full.new_empty((full.shape[0], full.shape[1], n, full.shape[3])) for name, full in self.full.items()
        }
