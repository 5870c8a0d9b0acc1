"""The state of a few images on their way through a run, and what each step kind does to it.

Per row and token its last computed predictions, per layer the background's cached tensors; all on the session's
device. Nothing here waits for the device or knows a policy's name: what a policy has to say is in its programs.

Both halves of a guidance pair keep predictions of their own. Extrapolation is linear in them, so guiding afterwards
is the same as extrapolating guided predictions (Eq. 12-13), whatever the scale, which only the pipeline knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from accelaes_export.backends.base import Session
from accelaes_export.backends.workspace import Workspace
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.patches import unpatchify
from accelaes_export.contract.tensors import AFFINITY, BACKGROUND_PREDICTION, FOCUS_PREDICTION
from accelaes_export.policies.base import Policy
from accelaes_export.policies.layer_schedule import counts_of
from accelaes_export.policies.plan import Plan, StepKind
from accelaes_export.policies.programs import CACHED_MADE, GUIDE_BY_REGION, Compute, state_shapes
from accelaes_export.policies.selection import FocusSets, background_of
from accelaes_export.runtime.cache import BackgroundCache
from accelaes_export.runtime.engine_calls import EngineCalls
from accelaes_export.runtime.step_inputs import StepInputs


@dataclass(frozen=True)
class Run:
    """What is fixed for one denoising run.

    Attributes:
        policy: supplies selector, extrapolation and guidance.
        plan: its plan for T steps.
        clock: T values the extrapolation counts in, the step index or σ; monotone.
        token_weights: [b, M] of the conditional texts, or None (no mask is built from text).
        since: the step its prompt holds from; at an earlier one there was another.
        first_order: whether the scheduler's own step is of first order; others extrapolate by themselves, so that
            the policy's θ is left out.
    """

    policy: Policy
    plan: Plan
    clock: Sequence[float]
    token_weights: torch.Tensor | None = None
    first_order: bool = True
    since: int = 0

    def target(self, i: int) -> float:
        """Where on the clock the prediction fed to the scheduler at step i lies: at i, or θ of a step past it."""
        theta, now = self.policy.extrapolation.theta, self.clock[i]
        if not theta or not self.first_order or len(self.clock) < 2:
            return now
        step = self.clock[i + 1] - now if i + 1 < len(self.clock) else now - self.clock[i - 1]
        return now + theta * step

    @property
    def leads(self) -> bool:
        """Whether the scheduler is fed something else than what a step computed, even where all tokens were."""
        return self.policy.extrapolation.leads and self.first_order

    def cache_is_read(self, i: int, *, past: int = 0) -> bool:
        """Whether a sparse step to come reads what is cached at step i, which `past` dense steps between leave there.

        A gate may skip what the plan calls dense.
        """
        for kind in self._kinds[i + 1 :]:
            if kind is StepKind.SPARSE:
                return True
            if kind is StepKind.DENSE and not self._gated:
                if not past:
                    return False
                past -= 1
        return False

    def history_is_read(self, i: int) -> bool:
        """Whether a step after i may be predicted from what is known after it; what all tokens' own predictions are fed
        to the scheduler as is read by nobody."""
        if self.leads or self.policy.spatial_guidance is not None or self._gated:
            return True
        return any(kind in (StepKind.SKIP, StepKind.SPARSE) for kind in self._kinds[i + 1 :])

    @cached_property
    def _kinds(self) -> tuple[StepKind, ...]:
        return tuple(step.kind for step in self.plan)

    @cached_property
    def _gated(self) -> bool:
        return self.policy.gate() is not None


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
        workspace: gives the place to work in, for calls of B rows.
        latents: its geometry.
        guidance: how the pipeline guides.
        run: plan and policy.
        programs: the policy's, by name.
        images: b; one engine call has b rows, or 2b with pairs.
        sets: which tokens sparse steps compute; images guided by a second call share them with that call.
        token_weights: [b, M], the run's for these images; None: no row is conditional, or there is no text.
    """

    def __init__(
        self,
        session: Session,
        workspace: Callable[[int], Workspace],
        latents: Latents,
        guidance: Guidance,
        run: Run,
        programs: Mapping[str, Compute],
        images: int,
        sets: FocusSets | None,
        token_weights: torch.Tensor | None,
        *,
        conditional: bool = True,
    ) -> None:
        self.images = images
        self._session = session
        self._latents = latents
        self._guidance = guidance
        self._run = run
        self._token_weights = token_weights
        self._workspace = workspace
        self._programs = programs
        self._chosen = sets
        self._is_conditional = conditional
        # The selector's step by the one it is observed at: a prompt that came later has its mask built later.
        self._observed = {run.since + i: i for i in run.policy.affinity_steps(run.plan) if conditional}
        left_out = sorted({step.left_out for step in run.plan if step.left_out is not None})
        self._ranges = {k: session.contract.ranges[k] for k in left_out}
        self._paired: bool | None = None
        self._cache: BackgroundCache | None = None
        self._sets: _TokenSets | None = None
        self._alpha: torch.Tensor | None = None
        self._filled = False

    def _begin(self, rows: int) -> None:
        """From here on calls have B = `rows`, of which nothing is known yet."""
        extrapolation, device = self._run.policy.extrapolation, self._session.device
        latents, self._place = self._latents, self._workspace(rows)
        sizes = {"B": rows, "N": latents.tokens, "w": latents.token_width}
        self._known: Mapping[str, torch.Tensor] = {
            name: torch.zeros([sizes[str(letter)] for letter in shape], device=device, dtype=torch.float32)
            for name, shape in state_shapes(extrapolation).items()
        }
        self._none = self._known["known"]  # no tokens
        self._all = torch.ones_like(self._none)
        self._halves = torch.zeros(rows, device=device)  # 1 in rows of the conditional half
        if self._is_conditional:
            self._halves[self._conditional] = 1.0
        self._calls = EngineCalls(self._session, self._place)
        self._cache = BackgroundCache(self._session.contract, self._place, keeps_two="carry" in self._programs)
        everything = torch.arange(latents.tokens, device=device).expand(rows, -1)
        self._everything, self._nothing = self._calls.tokens(everything, everything[:, :0])
        self._sets, self._alpha, self._filled = None, None, False

    def renew(self) -> None:
        """What is cached doesn't hold any more (keys were rotated by another table): the next step is DENSE."""
        self._filled = False
        if self._cache is not None and CACHED_MADE in self._known:
            self._known = {**self._known, CACHED_MADE: self._none}

    @property
    def focus_index(self) -> torch.Tensor | None:
        """[b, n] of the last sparse step."""
        return None if self._sets is None else self._sets.focus

    @property
    def affinity(self) -> torch.Tensor | None:
        """[b, N] the mask was built from."""
        return None if self._chosen is None else self._chosen.affinity()

    def step(self, i: int, n: int, now: StepInputs, *, skipped: bool = False) -> tuple[StepKind, torch.Tensor]:
        """Carry out step i with n focus tokens; returns its kind and the rows [B, ...] for the pipeline.

        The kind is the plan's, or SKIP where the policy's gate `skipped` it, but DENSE while nothing is cached (the
        first step, or after guidance was switched on or off in the middle of a run, when keys and predictions belong
        to another batch layout).
        """
        if now.paired != self._paired:
            self._paired = now.paired
            self._begin(now.hidden_states.shape[0])
        kind = StepKind.SKIP if skipped else self._run.plan[i].kind
        kind = kind if self._filled else StepKind.DENSE
        mask, target = self._mask(), self._run.target(i)
        if kind.whole:
            compute = self._partial if kind is StepKind.PARTIAL else self._dense
            tokens = (self._layered if self._run.plan.rows else compute)(i, now)
            if mask is None and not self._run.leads:
                # A copy: the next step writes over the engine's output, and a callback may keep this one.
                made = unpatchify(tokens, self._latents)
                return kind, made.clone() if made.data_ptr() == tokens.data_ptr() else made
        elif kind is StepKind.SPARSE:
            self._sparse(i, n, now)
        given = {**self._known, "target": target, "conditional": self._halves}
        prediction = self._programs["extrapolate"](given)["predicted"]  # [B, N, w]
        return kind, unpatchify(self._guided(prediction, mask), self._latents)

    def _dense(self, i: int, now: StepInputs) -> torch.Tensor:
        """Compute every token: the model's own output [B, N, w]."""
        assert self._cache is not None
        written: Mapping[str, torch.Tensor] = self._cache.renewing() if self._keeps(i) else {}
        for blocks in self._ranges.values():
            written = {**written, **self._calls.changes(now, blocks)}
        tokens = self._engine(i, self._everything, self._nothing, now, written)[FOCUS_PREDICTION]
        self._filled = True
        self._advance(i, tokens, cached=self._all)
        return tokens

    def _keeps(self, i: int) -> bool:
        """Whether what step i makes for the cache is fetched. A GPU's engine writes it in any case, and a kind of call
        less is a captured graph less."""
        on_gpu = self._session.workspaces.cuda is not None
        return on_gpu or self._run.cache_is_read(i, past=int("carry" in self._programs))

    def _partial(self, i: int, now: StepInputs) -> torch.Tensor:
        """Compute every token without a range of blocks, which adds what it did at the last dense step: [B, N, w]."""
        left_out = self._run.plan[i].left_out
        assert left_out is not None, "a partial step says which range it leaves out"
        tokens = self._calls.run_without(now, self._ranges[left_out])
        self._advance(i, tokens, cached=self._none)
        return tokens

    def _layered(self, i: int, now: StepInputs) -> torch.Tensor:
        """Predict every token by parts that compute tokens of their own, all of them where nothing is cached yet:
        [B, N, w]."""
        row = self._run.plan.rows[i]
        counts = counts_of(row if self._filled else [1.0] * len(row), self._latents.tokens)
        tokens = self._calls.run_layered(now, counts, begins=not self._filled)
        self._filled = True
        self._advance(i, tokens, cached=self._none)
        return tokens

    def _advance(
        self, i: int, computed: torch.Tensor, *, cached: torch.Tensor, running: torch.Tensor | None = None
    ) -> None:
        """Take in what step i computed: predictions [B, N, w], `running` [B, N] where that isn't all of them."""
        if running is None and not self._run.history_is_read(i):
            return
        name = "advance" if running is None else "advance_focus"
        tensors = {**self._known, "computed": computed.float(), "now": self._run.clock[i], "cached": cached}
        self._known = self._programs[name](tensors if running is None else {**tensors, "running": running})

    def _sparse(self, i: int, n: int, now: StepInputs) -> None:
        """Compute the focus tokens; what the graph needs of the background is read from the cache."""
        assert self._chosen is not None and self._cache is not None, "plans with sparse steps have a selector"
        focus = self._chosen.select(i, n, partial(self._score, i))  # [b, n]
        if self._sets is None or focus is not self._sets.focus:
            rows = torch.cat([focus, focus]) if self._paired else focus
            self._sets = _TokenSets(focus, *self._calls.tokens(rows, background_of(rows, self._latents.tokens)))
        sets = self._sets
        # A one-shot mask always computes the same tokens, so nobody would read what they write back.
        fresh = self._cache.fresh(n) if self._chosen.selector.moving and self._keeps(i) else {}
        outputs = self._engine(i, sets.focus_rows, sets.background_rows, now, fresh)
        if fresh:
            self._cache.write(sets.focus_rows)
        computed = self._known["prediction.0"].clone()
        _put(computed, sets.focus_rows, outputs[FOCUS_PREDICTION])
        if BACKGROUND_PREDICTION in outputs:  # component form: the network predicts the background as well
            _put(computed, sets.background_rows, outputs[BACKGROUND_PREDICTION])
        running = torch.zeros_like(self._all).scatter_(1, sets.focus_rows, 1.0)
        self._advance(i, computed, cached=running if fresh else self._none, running=running)

    def _score(self, i: int, affinity: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
        """[b, N]: by what is known of the conditional rows before step i."""
        rows = {name: tensor[self._conditional] for name, tensor in self._known.items()}
        seen = {name: tensor for name, tensor in (("affinity", affinity), ("mask", mask)) if tensor is not None}
        return self._programs["score"]({**rows, **seen, "now": self._run.clock[i]})["score"]

    def _engine(
        self,
        i: int,
        focus_rows: torch.Tensor,
        background_rows: torch.Tensor,
        now: StepInputs,
        fresh: Mapping[str, torch.Tensor],
    ) -> Mapping[str, torch.Tensor]:
        """One session call: its outputs by name. `fresh` are buffers for what is kept (none: it isn't fetched)."""
        assert self._cache is not None
        weights = self._weights(focus_rows.shape[0], self._calls.text_tokens(now))
        observed = self._chosen is not None and i in self._observed
        carry, distance = self._programs.get("carry"), None
        if carry is not None and background_rows.shape[1]:
            distance = carry({**self._known, "now": self._run.clock[i]})["distance"]
        cached = self._cache.background(background_rows, distance, self._sets)
        outputs = self._calls.run(now, focus_rows, background_rows, weights, cached, fresh, affinity=observed)
        if observed:
            assert self._chosen is not None
            self._chosen.observe(self._observed[i], outputs[AFFINITY][self._conditional])
        return outputs

    @property
    def _conditional(self) -> slice:
        """The rows of the conditional images."""
        first = self._paired and self._guidance.layout == "uncond_cond"
        return slice(self.images, None) if first else slice(0, self.images)

    def _weights(self, B: int, M: int) -> torch.Tensor:
        """[B, M] fp32: α of the conditional rows, zeros for the unconditional half."""
        if self._alpha is None or self._alpha.shape != (B, M):
            alpha = torch.zeros(B, M)
            if self._token_weights is not None:
                alpha[self._conditional, : self._token_weights.shape[1]] = self._token_weights
            self._alpha = self._calls.weights(alpha)  # once a run: it would be a copy from the host at every step
        return self._alpha

    def _mask(self) -> torch.Tensor | None:
        """M [b, N] of Eq. 7 as it is before this step, where the policy guides by region and there are pairs."""
        return self._chosen.mask() if self._chosen and self._paired and GUIDE_BY_REGION in self._programs else None

    def _guided(self, rows: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Rows [B, N, w] as they are, or with a mask [b, N] the guided prediction (Eq. 11) in both halves.

        The pipeline's own u + s(c - u) leaves equal halves as they are, whatever s.
        """
        if mask is None:
            return rows
        first, second = rows.chunk(2)
        uncond, cond = (first, second) if self._guidance.layout == "uncond_cond" else (second, first)
        E = self._programs[GUIDE_BY_REGION]({"uncond": uncond, "cond": cond, "mask": mask})["guided"]
        return torch.cat([E, E])


def _put(tokens: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> None:
    """Write rows [B, n, w] into tokens [B, N, w] at index [B, n]."""
    B, N, w = tokens.shape
    own = (torch.arange(B, device=index.device)[:, None] * N + index).reshape(-1)
    tokens.view(-1, w).index_copy_(0, own, rows.reshape(-1, w).to(tokens.dtype))
