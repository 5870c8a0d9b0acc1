"""One session of several engines: the focus step, the steps that leave a range of blocks out, the layer-wise step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelaes_export.backends.base import Session
from accelaes_export.contract.tensors import GraphContract, places

if TYPE_CHECKING:
    import torch

    from accelaes_export.backends.workspace import Workspace


def joined(full: Session, beside: Sequence[Session]) -> Session:
    """`full`, which also takes the steps of those `beside` it: each has an input that no other has."""
    return _JoinedSession(full, beside) if beside else full


class _JoinedSession:
    """Hands each call to the engine whose inputs it brings. Its contract is the focus step's."""

    def __init__(self, full: Session, beside: Sequence[Session]) -> None:
        self.contract = full.contract
        self.device: torch.device = full.device
        self.workspaces = full.workspaces
        self._full = full
        self._by_input = {_own_input(session.contract): session for session in beside}

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
        workspace: Workspace | None = None,
    ) -> None:
        """One step; see `Session.run`."""
        own = next((name for name in self._by_input if name in inputs), None)
        (self._full if own is None else self._by_input[own]).run(inputs, outputs, workspace)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._full, name)  # what a session has beside the protocol, such as `kernel_times`


def _own_input(contract: GraphContract) -> str:
    """The input that tells the calls of a step beside the focus step."""
    if contract.own_parts is not None:
        return places(contract.own_parts.labels[0])
    assert contract.without is not None, "a step beside the focus step leaves blocks out, or is layer-wise"
    return contract.without.changes[0].name
