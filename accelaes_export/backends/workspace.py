"""What a run's engine calls read and write: tensors at addresses that stay, and CUDA graphs of the calls on them.

A CUDA graph is bound to addresses, so it is worth capturing only where the same ones come back. They do: a run works in
workspaces, its next run takes the same ones, and those of a caller that is gone wait with the session for another.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch

from accelaes_export.backends.cuda_graphs import GraphCache

if TYPE_CHECKING:
    from accelaes_export.backends.cuda import Cuda, Graph, Stream


class Workspace:
    """Tensors by name, made when they are first asked for. One trajectory at a time works in it.

    Args:
        rows: B of the calls it is for.
        device: where the tensors are.

    Attributes:
        graphs: of calls on these tensors, by shapes and addresses.
        captures, replays: how many graphs were captured and replayed since the run began.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = rows
        self.device = device
        self.graphs: GraphCache[Graph] = GraphCache()
        self.captures = self.replays = 0
        self._tensors: dict[tuple[str, int], torch.Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, slot: int = 0) -> torch.Tensor:
        """A contiguous tensor to be written into: the same one for the same name and slot, until its shape changes.

        What it holds at first may be no numbers; later it is what was written last, perhaps by an earlier run.
        """
        found = self._tensors.get((name, slot))
        if found is None or found.shape != shape or found.dtype != dtype:
            found = self._tensors[(name, slot)] = torch.empty(shape, device=self.device, dtype=dtype)
        return found

    def zeros(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, slot: int = 0) -> torch.Tensor:
        """The same, filled with zeros now."""
        return self.empty(name, shape, dtype, slot).zero_()

    def holding(self, name: str, source: torch.Tensor, dtype: torch.dtype, slot: int = 0) -> torch.Tensor:
        """A tensor with the values of `source`, brought to the device and dtype."""
        # Towards a GPU, memory that isn't pinned is copied away at once, and the host needn't wait for the rest.
        waits = self.device.type != "cuda" or (source.device.type == "cpu" and source.is_pinned())
        return self.empty(name, tuple(source.shape), dtype, slot).copy_(source, non_blocking=not waits)


class Workspaces:
    """A session's workspaces that nobody works in.

    Args:
        device: the session's.
        cuda: the GPU, whose streams are put in order when a workspace changes hands; None on the CPU.
    """

    IDLE = 4
    """Kept at most; the one that waited longest goes."""

    def __init__(self, device: torch.device, cuda: Cuda | None = None) -> None:
        self.cuda = cuda
        self._device = device
        self._idle: deque[tuple[Workspace, Stream | None]] = deque()  # longest first

    def take(self, rows: int) -> Workspace:
        """A workspace for calls of B = `rows`: the one that was given back last, or a new one."""
        for _ in range(len(self._idle)):  # one by one, each atomic: another thread may take or give meanwhile
            try:
                workspace, stream = self._idle.pop()
            except IndexError:
                break
            if workspace.rows != rows:
                self._idle.appendleft((workspace, stream))
                continue
            if self.cuda is not None and stream is not None:  # what is under way there isn't to be written over
                self.cuda.caller().wait_event(stream.record_event())
            return workspace
        return Workspace(rows, self._device)

    def give(self, workspace: Workspace, stream: Stream | None) -> None:
        """Take back a workspace that was last used on `stream`. May run while an object is finalized, in any thread."""
        self._idle.append((workspace, stream))  # atomic: it waits for no lock that this thread may hold
        while len(self._idle) > self.IDLE:
            try:
                _, last = self._idle.popleft()
            except IndexError:
                return
            if last is not None:
                last.synchronize()  # its memory must not go to another stream while it is in use


class Desk:
    """The workspaces of one denoiser, for as long as it lives; then they go back to the session.

    Args:
        idle: the session's.
    """

    def __init__(self, idle: Workspaces) -> None:
        self._idle = idle
        self._held: dict[Hashable, Workspace] = {}
        self._streams: list[Stream] = []  # the one last used, alone
        self._used: set[Hashable] = set()
        weakref.finalize(self, _give_back, idle, self._held, self._streams)

    def begin(self) -> None:
        """A run begins: what the one before didn't use goes back."""
        unused = {key: self._held.pop(key) for key in self._held.keys() - self._used}
        _give_back(self._idle, unused, self._streams)
        self._used.clear()

    def place(self, key: Hashable, rows: int) -> Workspace:
        """The workspace of the part `key` of a run, for calls of B = `rows`."""
        key = (key, rows)
        if key not in self._held:
            self._held[key] = self._idle.take(rows)
        workspace = self._held[key]
        if key not in self._used:
            self._used.add(key)
            workspace.captures = workspace.replays = 0
        return workspace

    def touch(self) -> None:
        """The calls that follow are made on the caller's stream."""
        if self._idle.cuda is not None:
            self._streams[:] = [self._idle.cuda.caller()]

    @property
    def captures(self) -> int:
        """CUDA graphs captured since the run began."""
        return sum(self._held[key].captures for key in self._used)

    @property
    def replays(self) -> int:
        """CUDA graphs replayed since the run began."""
        return sum(self._held[key].replays for key in self._used)


def _give_back(idle: Workspaces, held: dict[Hashable, Workspace], streams: list[Stream]) -> None:
    stream = streams[-1] if streams else None
    while held:
        idle.give(held.popitem()[1], stream)
