"""Calls on a workspace's tensors, captured the first time and replayed from then on."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Generic, TypeVar

from accelaes_export.errors import AccelAesError

if TYPE_CHECKING:
    from accelaes_export.backends.cuda import Cuda, Stream
    from accelaes_export.backends.workspace import Workspace

GraphT = TypeVar("GraphT")


class GraphCache(Generic[GraphT]):
    """The graphs of the most recent calls, keyed by shapes and addresses.

    Args:
        capacity: graphs kept; the least recently used one goes.
    """

    def __init__(self, capacity: int = 64) -> None:
        self._capacity = capacity
        self._graphs: OrderedDict[Hashable, GraphT] = OrderedDict()

    def get(self, key: Hashable) -> GraphT | None:
        if key in self._graphs:
            self._graphs.move_to_end(key)
        return self._graphs.get(key)

    def put(self, key: Hashable, graph: GraphT) -> None:
        self._graphs[key] = graph
        if len(self._graphs) > self._capacity:
            self._graphs.popitem(last=False)

    def __len__(self) -> int:
        return len(self._graphs)


class GraphedCalls:
    """Replays calls from CUDA graphs, for as long as CUDA lets it.

    Args:
        cuda: the GPU.
        wanted: whether calls are captured at all; a capture that CUDA refuses turns it off for good.
    """

    def __init__(self, cuda: Cuda, wanted: bool) -> None:
        self.wanted = wanted
        self._cuda = cuda

    def replay(self, workspace: Workspace | None, key: Hashable, stream: Stream) -> bool:
        """Whether the call `key` on a workspace's tensors had a graph, which is then enqueued."""
        graph = workspace.graphs.get(key) if self.wanted and workspace is not None else None
        if graph is None or workspace is None:
            return False
        graph.replay(stream)
        workspace.replays += 1
        return True

    def capture(
        self,
        workspace: Workspace | None,
        key: Hashable,
        launch: Callable[[Stream], None],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """After the call `key` was made on a workspace's tensors: capture `launch` for the next time, where `ready`.

        Only after a plain call, because the first of a kind loads kernels, which a capture doesn't allow. Tensors of
        no workspace don't come back, so their calls aren't worth it.
        """
        if workspace is None or not (self.wanted and ready()):
            return
        try:
            workspace.graphs.put(key, self._cuda.capture(launch))
        except (RuntimeError, AccelAesError) as error:
            self.wanted = False
            logging.getLogger(__name__).warning("CUDA graphs are off for this session: %s", error)
        else:
            workspace.captures += 1
