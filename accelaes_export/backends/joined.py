"""One session of several engines: the focus step, and the steps that leave a range of blocks out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelaes_export.backends.base import Session

if TYPE_CHECKING:
    import torch

    from accelaes_export.backends.workspace import Workspace


def joined(full: Session, without: Sequence[Session]) -> Session:
    """`full`, which also takes the steps of `without`: those whose inputs have a range's changes."""
    return _JoinedSession(full, without) if without else full


class _JoinedSession:
    """Hands each call to the engine whose inputs it brings. Its contract is the focus step's."""

    def __init__(self, full: Session, without: Sequence[Session]) -> None:
        self.contract = full.contract
        self.device: torch.device = full.device
        self.workspaces = full.workspaces
        self._full = full
        self._by_change = {
            session.contract.without.changes[0].name: session
            for session in without
            if session.contract.without is not None
        }

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
        workspace: Workspace | None = None,
    ) -> None:
        """One step; see `Session.run`."""
        change = next((name for name in self._by_change if name in inputs), None)
        (self._full if change is None else self._by_change[change]).run(inputs, outputs, workspace)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._full, name)  # what a session has beside the protocol, such as `kernel_times`
