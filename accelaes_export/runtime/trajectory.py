"""The state of a few images on their way through a run, and what each step kind does to it.

Per token its last computed guided predictions, per layer the background's keys and values, and the selector; all
on the session's device. Nothing here waits for the device or knows a policy's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from accelaes_export.backends.base import Session
from accelaes_export.contract import AFFINITY, FOCUS_INDEX, FOCUS_PREDICTION, HIDDEN_STATES, TIMESTEP, TOKEN_WEIGHTS
from accelaes_export.dtypes import torch_dtype
from accelaes_export.manifest import Latents
from accelaes_export.patches import unpatchify
from accelaes_export.policies.base import Policy
from accelaes_export.policies.guidance import guided, softened_mask, spatial
from accelaes_export.policies.history import History
from accelaes_export.policies.plan import Plan, StepKind
from accelaes_export.policies.selection import background_of
from accelaes_export.runtime.buffers import StepBuffers
from accelaes_export.runtime.cache import BackgroundCache


@dataclass(frozen=True)
class Run:
    """What is fixed for one denoising run.

    Attributes:
        policy: supplies selector, extrapolation and guidance.
        plan: its plan for T steps.
        clock: T values the extrapolation counts in, the step index or σ; monotone.
        token_weights: [b, M] of the conditional texts, or None (no mask is built from text).
    """

    policy: Policy
    plan: Plan
    clock: Sequence[float]
    token_weights: torch.Tensor | None = None


@dataclass(frozen=True)
class Conditions:
    """A step's inputs beside its index: rows are the unconditional images, then the conditional ones, when paired."""

    hidden_states: torch.Tensor  # [B, C, Hl, Wl]
    timestep: torch.Tensor  # [B]
    conditioning: Mapping[str, torch.Tensor]  # by name, [B, ...]
    guidance: float | None  # the pipeline's scale, None without pairs


@dataclass(frozen=True)
class _TokenSets:
    """Focus and background of one sparse step, with the engine's rows (both halves of a pair share their image's)."""

    focus: torch.Tensor  # [b, n]
    focus_rows: torch.Tensor  # [B, n]
    background_rows: torch.Tensor  # [B, m]


class Trajectory:
    """A few images that share engine calls.

    Args:
        session: the opened engine.
        latents: its geometry.
        run: plan and policy.
        images: b; one engine call has b rows, or 2b with guidance.
        token_weights: [b, M] or None, this trajectory's own rows of the run's.
    """

    def __init__(
        self, session: Session, latents: Latents, run: Run, images: int, token_weights: torch.Tensor | None
    ) -> None:
        self.images = images
        self._session = session
        self._latents = latents
        self._run = run
        self._token_weights = token_weights
        self._dtype = torch_dtype(session.contract.dtype)
        self._selector = run.policy.selector()
        self._affinity_steps = run.policy.affinity_steps(run.plan)
        self._paired: bool | None = None
        self._buffers = StepBuffers(session.device)
        self._forget()

    def _forget(self) -> None:
        self._history = History(self._run.policy.extrapolation.order)
        self._cache: BackgroundCache | None = None
        self._sets: _TokenSets | None = None
        self._alpha: torch.Tensor | None = None

    @property
    def focus_index(self) -> torch.Tensor | None:
        """[b, n] of the last sparse step."""
        return None if self._sets is None else self._sets.focus

    @property
    def affinity(self) -> torch.Tensor | None:
        """[b, N] the mask was built from."""
        return None if self._selector is None else self._selector.mask()

    def step(self, i: int, n: int, now: Conditions) -> tuple[StepKind, torch.Tensor]:
        """Carry out step i with n focus tokens; returns its kind and the rows [B, C, Hl, Wl] for the pipeline.

        The kind is the plan's, but DENSE while nothing is cached (the first step, or after guidance was
        switched on or off in the middle of a run, when keys and predictions belong to another batch layout).
        """
        paired = now.guidance is not None
        if self._paired is not None and paired != self._paired:
            self._forget()
        self._paired = paired
        kind = self._run.plan[i].kind if self._cache is not None else StepKind.DENSE
        if kind is StepKind.DENSE:
            unchanged = self._dense(i, now)
            if unchanged is not None:
                return kind, unchanged
        elif kind is StepKind.SPARSE:
            self._sparse(i, n, now)
        prediction = self._history.at(self._run.clock[i], self._run.policy.extrapolation)  # [b, N, p·p·C]
        image = unpatchify(prediction, self._latents)
        return kind, torch.cat([image, image]) if paired else image

    def _dense(self, i: int, now: Conditions) -> torch.Tensor | None:
        """Compute every token; the model's own output where nothing about it changes, else None (see the history)."""
        B, N, device = now.hidden_states.shape[0], self._latents.tokens, self._session.device
        if self._cache is None:
            self._cache = BackgroundCache(self._session.contract, B, device, self._dtype)
            self._everything = torch.arange(N, device=device).expand(B, N).contiguous()
            self._nothing = self._everything[:, :0].contiguous()
        region = self._region()
        tokens = self._engine(i, self._everything, self._nothing, now, self._cache.full)
        self._cache.invalidate()
        self._history.update(None, self._guided(tokens, now.guidance, region), self._run.clock[i])
        # A copy: the next step writes over the engine's output, and a callback may keep this one.
        return unpatchify(tokens, self._latents).clone() if region is None else None

    def _sparse(self, i: int, n: int, now: Conditions) -> None:
        """Compute the focus tokens; the background's keys and values are read from the cache."""
        assert self._selector is not None and self._cache is not None, "plans with sparse steps have a selector"
        region = self._region()
        focus = self._selector.select(i, n)  # [b, n]
        if self._sets is None or focus is not self._sets.focus:
            rows = torch.cat([focus, focus]) if self._paired else focus
            self._sets = _TokenSets(focus, rows.contiguous(), background_of(rows, self._latents.tokens))
        rows = self._sets.focus_rows
        # A one-shot mask always computes the same tokens, so nobody would read what they write back.
        fresh = self._cache.fresh(n) if self._selector.moving else {}
        tokens = self._engine(i, rows, self._sets.background_rows, now, fresh)
        if fresh:
            self._cache.write(rows, fresh)
        if region is not None:
            region = torch.gather(region, 1, focus)
        self._history.update(focus, self._guided(tokens, now.guidance, region), self._run.clock[i])

    def _engine(
        self,
        i: int,
        focus_rows: torch.Tensor,
        background_rows: torch.Tensor,
        now: Conditions,
        fresh: Mapping[str, torch.Tensor],
    ) -> torch.Tensor:
        """One session call: [B, n, p·p·C]. `fresh` are the buffers for keys and values (none: they aren't fetched)."""
        assert self._cache is not None
        contract, buffers, dtype = self._session.contract, self._buffers, self._dtype
        B, n = focus_rows.shape
        M = now.conditioning[contract.conditioning[0]].shape[1]
        inputs = {
            HIDDEN_STATES: buffers.holding(HIDDEN_STATES, now.hidden_states, dtype),
            TIMESTEP: buffers.holding(TIMESTEP, now.timestep, torch.float32),
            **{name: buffers.holding(name, tensor, dtype) for name, tensor in now.conditioning.items()},
            FOCUS_INDEX: focus_rows,
            TOKEN_WEIGHTS: self._weights(B, M),
            **self._cache.background(background_rows),
        }
        shapes = contract.output_shapes(contract.sizes(n, B, M))
        tokens = buffers.empty(FOCUS_PREDICTION, shapes[FOCUS_PREDICTION], dtype)
        outputs = {FOCUS_PREDICTION: tokens, **fresh}
        observed = self._selector is not None and i in self._affinity_steps
        if observed:
            outputs[AFFINITY] = buffers.empty(AFFINITY, shapes[AFFINITY], torch.float32)
        self._session.run(inputs, outputs)
        if observed:
            assert self._selector is not None
            self._selector.observe(i, outputs[AFFINITY][-self.images :])  # only the conditional half counts
        return tokens

    def _weights(self, B: int, M: int) -> torch.Tensor:
        """[B, M] fp32: α of the conditional rows, zeros for the unconditional half."""
        if self._alpha is None or self._alpha.shape != (B, M):
            alpha = torch.zeros(B, M)
            if self._token_weights is not None:
                alpha[-self.images :] = self._token_weights
            self._alpha = alpha.to(self._session.device)  # once a run: it would be a copy from the host at every step
        return self._alpha

    def _region(self) -> torch.Tensor | None:
        """M [b, N] of Eq. 7 as it was before this step, where the policy guides by region and there are pairs."""
        by_region = self._run.policy.spatial_guidance
        if self._selector is None or by_region is None or not self._paired:
            return None
        region = self._selector.region()
        return None if region is None else softened_mask(region, self._latents.grid, by_region.softness)

    def _guided(self, tokens: torch.Tensor, guidance: float | None, region: torch.Tensor | None) -> torch.Tensor:
        """Rows [B, n, d] to guided predictions [b, n, d] in fp32; `region` [b, n] guides by Eq. 11."""
        if guidance is None:
            return tokens.float()
        uncond, cond = tokens.float().chunk(2)
        by_region = self._run.policy.spatial_guidance
        if region is None or by_region is None:
            return guided(uncond, cond, guidance)
        return spatial(uncond, cond, region, by_region)
