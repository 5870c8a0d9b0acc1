"""The background cache: every layer's keys and values, or part outputs, of all N tokens, kept on the device.

Cached tensors may be extrapolated as predictions are: every token's own last two, linearly, as far as the policy says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from accelaes_export.backends.workspace import Workspace
from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.tensors import GraphContract

_ALIGNMENT = 256
"""Bytes: of what CUDA allocates."""


@dataclass
class _Segment:
    """Background rows of one focus count: whose they are, and whether the full tensors changed since."""

    chosen: object = None
    stale: bool = True


class _Stack:
    """The cached tensors of one size, one behind the other: what is done to all of them is one operation.

    Args:
        names: of the tensors, K.
        heads, head_dim, tokens: Hkv, hd and N of each.
        workspace: where they are; its rows are B.
        keeps_two: whether what was there before is kept as well.
    """

    def __init__(
        self,
        names: Sequence[str],
        heads: int,
        head_dim: int,
        tokens: int,
        workspace: Workspace,
        dtype: torch.dtype,
        *,
        keeps_two: bool,
    ) -> None:
        self._names = tuple(names)
        self._size = (len(self._names), workspace.rows, heads, head_dim)
        self._workspace = workspace
        self._dtype = dtype
        # Zeros: what memory held before may be no numbers, and times 0 they would still be none.
        self._full = workspace.zeros(f"all {self._names[0]}", self._shape(tokens), dtype)
        self._earlier = workspace.zeros(f"earlier {self._names[0]}", self._shape(tokens), dtype) if keeps_two else None
        self.full = self._by_name(self._full)
        self._named: dict[tuple[str, int], dict[str, torch.Tensor]] = {}  # by suffix and count

    def _shape(self, count: int) -> tuple[int, ...]:
        K, B, heads, head_dim = self._size
        return K, B, heads, count, head_dim

    def _by_name(self, stack: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(self._names, stack.unbind(), strict=True))

    def _rows(self, index: torch.Tensor) -> torch.Tensor:
        """[B * H * n] int64: where tokens [B, n] lie in a tensor [B, H, N, hd] seen as rows of hd numbers."""
        _, B, heads, _ = self._size
        base = torch.arange(B * heads, device=index.device).reshape(B, heads, 1) * self._full.shape[3]
        return (base + index[:, None, :]).reshape(-1)

    def put_by(self) -> None:
        """Keep what there is as what there was: a copy, as engines see the same addresses."""
        if self._earlier is not None:
            self._earlier.copy_(self._full)

    def empty(self, suffix: str, count: int) -> torch.Tensor:
        """[K, B, H, count, hd], the same every time."""
        return self._workspace.empty(self._names[0] + suffix, self._shape(count), self._dtype, slot=count)

    def fresh(self, n: int) -> dict[str, torch.Tensor]:
        """Buffers by name for n tokens."""
        return self._buffers("", n)

    def _buffers(self, suffix: str, count: int) -> dict[str, torch.Tensor]:
        """Those of `empty`, by name."""
        if (suffix, count) not in self._named:
            named = self._by_name(self.empty(suffix, count))
            self._named[suffix, count] = {name + suffix: tensor for name, tensor in named.items()}
        return self._named[suffix, count]

    def write(self, index: torch.Tensor) -> None:
        """Write the buffers of n tokens back at index [B, n]."""
        rows, full = self._rows(index), _by_row(self._full)
        if self._earlier is not None:
            _by_row(self._earlier).index_copy_(1, rows, full.index_select(1, rows))
        full.index_copy_(1, rows, _by_row(self.empty("", index.shape[1])))

    def background(
        self, index: torch.Tensor, distance: torch.Tensor | None, *, gather: bool
    ) -> dict[str, torch.Tensor]:
        """The rows at index [B, m] by name, read anew if `gather`, and carried on `distance` [B, m] gaps."""
        m = index.shape[1]
        if gather and m:
            target = self.empty("_bg", m)
            rows = self._rows(index)
            torch.index_select(_by_row(self._full), 1, rows, out=_by_row(target))
            if distance is not None and self._earlier is not None:
                before = self.empty(" before", m)
                torch.index_select(_by_row(self._earlier), 1, rows, out=_by_row(before))
                beyond = distance[None, :, None, :, None].to(self._dtype)
                target.add_(torch.sub(target, before, out=before).mul_(beyond))
        return self._buffers("_bg", m)


def _by_row(stack: torch.Tensor) -> torch.Tensor:
    """[K, B, H, n, hd] as [K, B * H * n, hd]: whole rows are copied several times faster than single numbers."""
    return stack.view(stack.shape[0], -1, stack.shape[-1])


class BackgroundCache:
    """What is cached of one batch of images: keys and values (token form) or part outputs (component form).

    Dense steps write straight into the full tensors (they are the engine's output buffers). A sparse step reads the
    background's rows, gathered once for as long as neither the rows nor the full tensors change, into buffers that
    keep their addresses.

    Args:
        contract: the graph's tensor table.
        workspace: where the tensors are; its rows are B, guidance pairs included.
        keeps_two: whether every token's second-last cached tensors are kept as well, to extrapolate from.
    """

    def __init__(self, contract: GraphContract, workspace: Workspace, *, keeps_two: bool = False) -> None:
        self._segments: dict[int, _Segment] = {}  # by m
        dtype = torch_dtype(contract.dtype)
        self._stacks = [
            _Stack(names, heads, head_dim, contract.tokens, workspace, dtype, keeps_two=keeps_two)
            for (heads, head_dim), names in _alike(contract, workspace, dtype)
        ]
        self.full = {name: tensor for stack in self._stacks for name, tensor in stack.full.items()}

    def invalidate(self) -> None:
        """Call after the full tensors were written: gathered rows are out of date."""
        for segment in self._segments.values():
            segment.stale = True

    def renewing(self) -> dict[str, torch.Tensor]:
        """The full tensors, for a dense step to write into; what they hold is put by where it is needed."""
        for stack in self._stacks:
            stack.put_by()
        self.invalidate()
        return self.full

    def fresh(self, n: int) -> dict[str, torch.Tensor]:
        """Buffers [B, Hkv, n, hd] for what a sparse step makes anew."""
        return {name: tensor for stack in self._stacks for name, tensor in stack.fresh(n).items()}

    def write(self, focus_index: torch.Tensor) -> None:
        """Write what a sparse step made, in the buffers of `fresh`, back at focus_index [B, n]."""
        for stack in self._stacks:
            stack.write(focus_index)
        self.invalidate()

    def background(
        self, background_index: torch.Tensor, distance: torch.Tensor | None = None, chosen: object = None
    ) -> dict[str, torch.Tensor]:
        """The engine inputs ``<name>_bg`` [B, Hkv, m, hd] at background_index [B, m]; m may be 0.

        Args:
            distance: [B, N] fp32, how many gaps between a token's last two its cached tensors are carried on beyond
                the last. None: they are taken as they are.
            chosen: stands for the choice of these tokens: as long as it is the same object they are the same ones.
                Without it that is the index itself.
        """
        chosen = background_index if chosen is None else chosen
        segment = self._segments.setdefault(background_index.shape[1], _Segment())
        gather = segment.stale or distance is not None or chosen is not segment.chosen
        beyond = None if distance is None else distance.gather(1, background_index)
        segment.chosen, segment.stale = chosen, False
        return {
            name: tensor
            for stack in self._stacks
            for name, tensor in stack.background(background_index, beyond, gather=gather).items()
        }


def _alike(
    contract: GraphContract, workspace: Workspace, dtype: torch.dtype
) -> list[tuple[tuple[int, int], list[str]]]:
    """The cache's entries by (heads, head size), each with its names.

    Engines on GPUs want tensors at aligned addresses: where one behind the other would not be, each stands alone.
    """
    alike: dict[tuple[int, int], list[str]] = {}
    for entry in contract.cache:
        alike.setdefault((entry.heads, entry.head_dim), []).append(entry.name)
    found = []
    for (heads, head_dim), names in alike.items():
        numbers = torch.Size((workspace.rows, heads, head_dim)).numel()
        counts = {count for n in contract.buckets for count in (n, contract.tokens - n)}
        crooked = any(numbers * count * dtype.itemsize % _ALIGNMENT for count in counts)
        alone = workspace.device.type == "cuda" and crooked
        found += [((heads, head_dim), [name]) for name in names] if alone else [((heads, head_dim), names)]
    return found
