"""The background cache: every layer's keys and values, or part outputs, of all N tokens, kept on the device.

Cached tensors may be extrapolated as predictions are: every token's own last two, linearly, in clock time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from accelaes_export.backends.workspace import Workspace
from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.tensors import GraphContract
from accelaes_export.policies.cache_clocks import carried, made, never_made


@dataclass
class _Segment:
    """Background rows of one focus count: whose they are, for when, and whether the full tensors changed since."""

    chosen: object = None
    clock: float | None = None
    stale: bool = True


class _Earlier:
    """Every token's second-last cached tensors, and when its last two were made."""

    def __init__(self, full: Mapping[str, torch.Tensor], workspace: Workspace) -> None:
        self.tensors = {
            name: workspace.zeros(f"earlier {name}", tuple(tensor.shape), tensor.dtype) for name, tensor in full.items()
        }
        some = next(iter(full.values()))
        self._none = self.clocks = never_made(some.shape[0], some.shape[2], some.device)

    def forget(self) -> None:
        self.clocks = self._none

    def made(self, index: torch.Tensor | None, clock: float) -> None:
        """Tokens `index` [B, n] (None: all) are made at `clock`."""
        computed = None
        if index is not None:
            computed = torch.zeros_like(self.clocks.latest, dtype=torch.bool).scatter_(1, index, True)
        self.clocks = made(self.clocks, clock, computed)


class _RowsOf:
    """Where tokens [B, n] lie in tensors [B, H, N, hd] seen as rows of hd numbers; found once for all of as many heads.

    Whole rows are copied: several times faster than numbers gathered and scattered one by one.
    """

    def __init__(self, index: torch.Tensor) -> None:
        self._index = index
        self._found: dict[int, torch.Tensor] = {}

    def in_(self, full: torch.Tensor) -> torch.Tensor:
        """[B * H * n] int64: the rows of `full`, in the order of [B, H, n]."""
        B, heads, N, _ = full.shape
        if heads not in self._found:
            base = torch.arange(B * heads, device=full.device).reshape(B, heads, 1) * N
            self._found[heads] = (base + self._index[:, None, :]).reshape(-1)
        return self._found[heads]


def _by_row(tensor: torch.Tensor) -> torch.Tensor:
    """[B, H, n, hd] as [B * H * n, hd]."""
    return tensor.view(-1, tensor.shape[-1])


class BackgroundCache:
    """What is cached of one batch of images: keys and values (token form) or part outputs (component form).

    Dense steps write straight into the full tensors (they are the engine's output buffers). A sparse step reads the
    background's rows, gathered once for as long as neither the rows nor the full tensors change, into buffers that
    keep their addresses.

    Args:
        contract: the graph's tensor table.
        workspace: where the tensors are; its rows are B, guidance pairs included.
        reach: cached tensors are extrapolated, at most so many gaps between a token's last two; 0: as they are, and
            one of each is kept.
    """

    def __init__(self, contract: GraphContract, workspace: Workspace, reach: float = 0.0) -> None:
        self._entries = contract.cache
        self._dtype = dtype = torch_dtype(contract.dtype)
        self._workspace = workspace
        self._segments: dict[int, _Segment] = {}  # by m
        # Zeros: what memory held before may be no numbers, and times 0 they would still be none.
        self.full = {
            entry.name: workspace.zeros(
                f"all {entry.name}", (workspace.rows, entry.heads, contract.tokens, entry.head_dim), dtype
            )
            for entry in contract.cache
        }
        self._reach = reach
        self._earlier = _Earlier(self.full, workspace) if reach and self.full else None

    def invalidate(self) -> None:
        """Call after the full tensors were written: gathered rows are out of date."""
        for segment in self._segments.values():
            segment.stale = True

    def renewing(self, clock: float) -> dict[str, torch.Tensor]:
        """The full tensors, for a dense step at `clock` to write into; what they hold is put by where it is needed."""
        if self._earlier is not None:
            for name, full in self.full.items():  # copied, not exchanged: engines see the same addresses
                self._earlier.tensors[name].copy_(full)
            self._earlier.made(None, clock)
        self.invalidate()
        return self.full

    def forget(self) -> None:
        """What was cached before doesn't go with what will be: it is not extrapolated from."""
        if self._earlier is not None:
            self._earlier.forget()

    def fresh(self, n: int) -> dict[str, torch.Tensor]:
        """Buffers [B, Hkv, n, hd] for what a sparse step makes anew."""
        return {
            name: self._workspace.empty(name, (full.shape[0], full.shape[1], n, full.shape[3]), self._dtype, slot=n)
            for name, full in self.full.items()
        }

    def write(self, focus_index: torch.Tensor, fresh: Mapping[str, torch.Tensor], clock: float = 0.0) -> None:
        """Write a sparse step's cached tensors [B, Hkv, n, hd], made at `clock`, back at focus_index [B, n]."""
        rows = _RowsOf(focus_index)
        for entry in self._entries:
            own, full = rows.in_(self.full[entry.name]), _by_row(self.full[entry.name])
            if self._earlier is not None:
                _by_row(self._earlier.tensors[entry.name]).index_copy_(0, own, full.index_select(0, own))
            full.index_copy_(0, own, _by_row(fresh[entry.name]))
        if self._earlier is not None:
            self._earlier.made(focus_index, clock)
        self.invalidate()

    def background(
        self, background_index: torch.Tensor, clock: float = 0.0, chosen: object = None
    ) -> dict[str, torch.Tensor]:
        """The engine inputs ``<name>_bg`` [B, Hkv, m, hd] at background_index [B, m] for `clock`; m may be 0.

        `chosen` stands for the choice of these tokens: as long as it is the same object they are the same ones. Without
        it that is the index itself.
        """
        chosen = background_index if chosen is None else chosen
        B, m = background_index.shape
        segment = self._segments.setdefault(m, _Segment())
        rows, inputs = _RowsOf(background_index), {}
        distance = None
        if self._earlier is not None and m:
            segment.stale = segment.stale or clock != segment.clock
            everywhere = carried(self._earlier.clocks, clock, self._reach)  # [B, N]
            distance = everywhere.gather(1, background_index)[:, None, :, None].to(self._dtype)
        for entry in self._entries:
            full = self.full[entry.name]
            heads, hd = entry.heads, entry.head_dim
            target = self._workspace.empty(f"{entry.name}_bg", (B, heads, m, hd), self._dtype, slot=m)
            inputs[f"{entry.name}_bg"] = target
            if not m or not (segment.stale or chosen is not segment.chosen):
                continue
            own = rows.in_(full)
            torch.index_select(_by_row(full), 0, own, out=_by_row(target))
            if self._earlier is not None and distance is not None:
                earlier = self._workspace.empty("earlier rows", (B, heads, m, hd), self._dtype, slot=m)
                before = self._earlier.tensors[entry.name]
                torch.index_select(_by_row(before), 0, own, out=_by_row(earlier))
                target.add_(torch.sub(target, earlier, out=earlier).mul_(distance))
        segment.chosen, segment.clock, segment.stale = chosen, clock, False
        return inputs
