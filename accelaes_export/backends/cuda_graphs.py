"""Which calls are worth a CUDA graph, and the graphs captured so far."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from accelaes_export.backends.cuda import Cuda, Graph, Stream
from accelaes_export.errors import AccelAesError

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


class GraphedCalls:
    """Replays calls that come back from a CUDA graph, for as long as CUDA lets it.

    Args:
        cuda: the GPU.
        wanted: whether calls are captured at all; a capture that CUDA refuses turns it off for good.
    """

    def __init__(self, cuda: Cuda, wanted: bool) -> None:
        self.wanted = wanted
        self._cuda = cuda

    def find(self, graphs: GraphCache[Graph], key: Hashable) -> Graph | None:
        """The graph of the call `key`, or None where it has to be made."""
        return graphs.get(key) if self.wanted else None

    def capture(
        self,
        graphs: GraphCache[Graph],
        key: Hashable,
        launch: Callable[[Stream], None],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """After the call `key` was made: capture `launch` for the next time, if it came back and is `ready`.

        Only after a plain call, because the first of a kind loads kernels, which a capture doesn't allow.
        """
        if not (self.wanted and graphs.returns(key) and ready()):
            return
        try:
            graphs.put(key, self._cuda.capture(launch))
        except (RuntimeError, AccelAesError) as error:
            self.wanted = False
            logging.getLogger(__name__).warning("CUDA graphs are off for this session: %s", error)
