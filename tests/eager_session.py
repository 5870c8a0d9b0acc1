"""A session that runs the focus step eagerly: the engine of tests that are about the runtime, not about a backend."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from accelaes_export.backends.workspace import Workspace, Workspaces
from accelaes_export.graph.focus_step import FocusStep


class EagerSession:
    """Counts its calls: `calls` lists the focus count and rows of each."""

    def __init__(self, step: FocusStep) -> None:
        self.contract = step.contract
        self.device = torch.device("cpu")
        self.calls: list[tuple[int, int]] = []
        self.workspaces = Workspaces(self.device)
        self._step = step

    def run(
        self,
        inputs: Mapping[str, torch.Tensor],
        outputs: Mapping[str, torch.Tensor],
        workspace: Workspace | None = None,
    ) -> None:
        specs = {spec.name: spec for spec in self.contract.inputs}
        assert set(inputs) == set(specs)
        B = inputs["hidden_states"].shape[0]
        n = inputs["focus_index"].shape[1] if "focus_index" in inputs else self.contract.tokens
        text = self.contract.text_input
        observed = "observed_index" in inputs and inputs["observed_index"].shape[1] > 0
        sizes = self.contract.sizes(n, B, 0 if text is None else inputs[text].shape[1], observed=observed)
        for name, tensor in inputs.items():
            assert tuple(tensor.shape) == specs[name].sized(sizes), name
            assert tensor.is_contiguous(), name
        assert n in self.contract.buckets
        assert B <= self.contract.rows
        self.calls.append((n, B))
        with torch.no_grad():
            computed = self._step.run(dict(inputs))
        for name, tensor in outputs.items():
            tensor.copy_(computed[name])
