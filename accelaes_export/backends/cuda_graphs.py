"""Which calls are worth a CUDA graph, and the graphs captured so far."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

GraphT = TypeVar("GraphT")


class GraphCache(Generic[GraphT]):
    """The graphs of the most recent calls, keyed by shapes and addresses.

    A call is worth capturing when it comes back: a caller whose tensors move at every step would pay for
    captures it never replays.

    Args:
        capacity: graphs kept; the least recently used one goes.
    """

    def __init__(self, capacity: int = 8) -> None:
        self._capacity = capacity
        self._graphs: OrderedDict[Hashable, GraphT] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()

    def get(self, key: Hashable) -> GraphT | None:
        if key in self._graphs:
            self._graphs.move_to_end(key)
        return self._graphs.get(key)

    def returns(self, key: Hashable) -> bool:
        """Whether a call under `key` was seen lately; remembers this one."""
        returned = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > 4 * self._capacity:
            self._seen.popitem(last=False)
        return returned

    def put(self, key: Hashable, graph: GraphT) -> None:
        self._graphs[key] = graph
        self._seen.pop(key, None)
        if len(self._graphs) > self._capacity:
            self._graphs.popitem(last=False)

    def __len__(self) -> int:
        return len(self._graphs)
