"""From a step's tensors to one session call: the contract's names and dtypes, in buffers that keep their addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from accelaes_export.backends.base import Session
from accelaes_export.backends.workspace import Workspace
from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.tensors import (
    AFFINITY,
    BACKGROUND_INDEX,
    BACKGROUND_PREDICTION,
    FOCUS_INDEX,
    FOCUS_PREDICTION,
    HIDDEN_STATES,
    NEW,
    OBSERVED_INDEX,
    TIMESTEP,
    TOKEN_WEIGHTS,
    BlockRange,
    TensorSpec,
    keys_of,
    places,
)
from accelaes_export.runtime.step_inputs import StepInputs


class EngineCalls:
    """The calls of one trajectory. What is the same at every step is looked up once.

    Args:
        session: the opened engine.
        workspace: where the calls' tensors are.
    """

    def __init__(self, session: Session, workspace: Workspace) -> None:
        contract = session.contract
        self._session = session
        self._workspace = workspace
        self._dtypes = {spec.name: torch_dtype(spec.dtype) for spec in (*contract.inputs, *contract.outputs)}
        self._counted: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
        self._side = 0  # where layer-wise steps have their state
        self._text = contract.text_input
        self._text_axes = {spec.name: spec.shape.index("M") for spec in contract.inputs if "M" in spec.shape}
        self._layered = contract.layerwise
        self._predictions = [name for name in (FOCUS_PREDICTION, BACKGROUND_PREDICTION) if name in self._dtypes]

    def text_tokens(self, now: StepInputs) -> int:
        """M of the call; a fixed window that takes shorter texts runs at its own length."""
        contract = self._session.contract
        M = contract.text_tokens if self._text is None else now.conditioning[self._text].shape[1]
        return contract.window(M)

    def tokens(self, focus: torch.Tensor, background: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Focus and background of a step, [B, n] and [B, m], where calls of this n and m read them."""
        return tuple(
            self._workspace.holding(name, index.contiguous(), torch.int64, slot=index.shape[1])
            for name, index in ((FOCUS_INDEX, focus), (BACKGROUND_INDEX, background))
        )  # type: ignore[return-value]

    def weights(self, alpha: torch.Tensor) -> torch.Tensor:
        """Token weights [B, M], where every call reads them."""
        return self._workspace.holding(TOKEN_WEIGHTS, alpha, torch.float32)

    def run(
        self,
        now: StepInputs,
        focus_rows: torch.Tensor,
        background_rows: torch.Tensor,
        weights: torch.Tensor,
        cached: Mapping[str, torch.Tensor],
        fresh: Mapping[str, torch.Tensor],
        *,
        affinity: bool,
    ) -> Mapping[str, torch.Tensor]:
        """One focus step; its outputs by name, in buffers that the next call of this kind writes over.

        Args:
            focus_rows, background_rows: [B, n] and [B, m], as `tokens` gave them.
            weights: as `weights` gave them.
            cached: the background's inputs.
            fresh: buffers for what is to be cached; what is left out isn't fetched.
            affinity: whether the affinity is made and fetched.
        """
        contract = self._session.contract
        (B, n), M = focus_rows.shape, self.text_tokens(now)
        inputs = self._conditions(now, M)
        ours = {FOCUS_INDEX: focus_rows, BACKGROUND_INDEX: background_rows, TOKEN_WEIGHTS: weights}
        ours[OBSERVED_INDEX] = self._counting(OBSERVED_INDEX, (B, n if affinity else 0))
        inputs |= {name: tensor for name, tensor in ours.items() if name in self._dtypes} | dict(cached)
        shapes = contract.output_shapes(contract.sizes(n, B, M, observed=affinity))
        wanted = [*self._predictions, *([AFFINITY] if affinity else [])]
        outputs = {name: self._workspace.empty(name, shapes[name], self._dtypes[name], slot=n) for name in wanted}
        outputs |= fresh
        self._session.run(inputs, outputs, self._workspace)
        return outputs

    def _counting(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """0, 1, 2 ... in every row of the input `name`, always the same."""
        if (name, shape) not in self._counted:
            numbers = torch.arange(shape[-1], device=self._session.device).expand(shape)
            self._counted[name, shape] = self._workspace.holding(name, numbers, torch.int64, slot=shape[-1])
        return self._counted[name, shape]

    def run_without(self, now: StepInputs, blocks: BlockRange) -> torch.Tensor:
        """The step that leaves `blocks` out, with what they changed at the last dense step: the prediction [B, N, w],
        in a buffer that the next call of this kind writes over."""
        inputs = {**self._conditions(now, self.text_tokens(now)), **self.changes(now, blocks)}
        outputs = self._whole(now, [spec for spec in self._session.contract.outputs if spec.name == FOCUS_PREDICTION])
        self._session.run(inputs, outputs, self._workspace)
        return outputs[FOCUS_PREDICTION]

    def changes(self, now: StepInputs, blocks: BlockRange) -> dict[str, torch.Tensor]:
        """Buffers for what `blocks` change in a dense step of `now`."""
        return self._whole(now, blocks.changes)

    def run_layered(self, now: StepInputs, counts: Sequence[int], *, begins: bool) -> torch.Tensor:
        """The layer-wise step: the prediction [B, N, w], in a buffer that the next call of this kind writes over.

        Args:
            counts: how many tokens each part computes.
            begins: whether nothing is known of these pictures; else it reads the state that the call before left.
        """
        assert self._layered is not None, "plans with layer-wise steps are for bundles that have one"
        inputs = self._conditions(now, self.text_tokens(now))
        for part, count in zip(self._layered.parts, counts, strict=True):
            asked = {places(part.label): count}
            if part.keys:
                asked[keys_of(part.label)] = self._session.contract.tokens if count else 0
            inputs |= {name: self._counting(name, (size,)) for name, size in asked.items()}
        before, after = (self._whole(now, self._layered.state, slot=side) for side in (self._side, 1 - self._side))
        self._side = 1 - self._side
        if begins:  # all is computed, but ranked by what memory held before, which may be no numbers
            for tensor in before.values():
                tensor.zero_()
        outputs = self._whole(now, [spec for spec in self._session.contract.outputs if spec.name == FOCUS_PREDICTION])
        written = {name + NEW: tensor for name, tensor in after.items()}
        self._session.run(inputs | before, outputs | written, self._workspace)
        return outputs[FOCUS_PREDICTION]

    def _whole(self, now: StepInputs, specs: Sequence[TensorSpec], slot: int | None = None) -> dict[str, torch.Tensor]:
        """Buffers by name, sized for a step of all N tokens, in its own slot or another."""
        contract = self._session.contract
        sizes = contract.sizes(contract.tokens, now.hidden_states.shape[0], self.text_tokens(now))
        return {
            s.name: self._workspace.empty(
                s.name, s.sized(sizes), torch_dtype(s.dtype), slot=contract.tokens if slot is None else slot
            )
            for s in specs
        }

    def _conditions(self, now: StepInputs, M: int) -> dict[str, torch.Tensor]:
        """The inputs that the pipeline brings, with a text of M tokens."""
        tensors = {HIDDEN_STATES: now.hidden_states, TIMESTEP: now.timestep, **now.conditioning}
        return {
            name: self._workspace.holding(name, _padded(tensor, self._text_axes.get(name), M), self._dtypes[name])
            for name, tensor in tensors.items()
        }


def _padded(tensor: torch.Tensor, axis: int | None, size: int) -> torch.Tensor:
    """`tensor` with zeros behind its text, up to `size` of them along `axis`; as it is where nothing is missing."""
    if axis is None or tensor.shape[axis] == size:
        return tensor
    return torch.nn.functional.pad(tensor, (0, 0) * (tensor.ndim - 1 - axis) + (0, size - tensor.shape[axis]))
