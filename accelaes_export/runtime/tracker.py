"""One pipeline's way through its calls of the transformer: when a run begins, what it runs, and which step this is.

State belongs to a run of one pipeline object. Copies of a pipeline that share the transformer have a tracker each.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from accelaes_export.checks import is_number
from accelaes_export.contract.geometry import Geometry
from accelaes_export.contract.manifest import Manifest
from accelaes_export.contract.tensors import TensorSpec
from accelaes_export.errors import InputError, TooFewStepsError
from accelaes_export.policies.base import Policy
from accelaes_export.policies.dense import Dense
from accelaes_export.policies.plan import Plan
from accelaes_export.policies.planned import relies_on_the_solver
from accelaes_export.runtime.arguments import Arguments
from accelaes_export.runtime.callers import Caller
from accelaes_export.runtime.denoiser import CONDITIONAL, UNCONDITIONAL, Denoiser
from accelaes_export.runtime.prompts import EncodedPrompts, MaskWords, PromptWeights, Row, repeated, rows_of
from accelaes_export.runtime.report import RunReport
from accelaes_export.runtime.samplers import adds_noise, is_first_order, moves_as_euler
from accelaes_export.runtime.step_inputs import StepInputs
from accelaes_export.runtime.trajectory import Run

logger = logging.getLogger("accelaes_export")

FOREIGN = "This transformer serves another pipeline; call ax.accelerate on the pipeline you use."
_DISPLACED = (
    "The scheduler's timesteps were set again in the middle of this pipeline's run; a pipeline makes one picture at a "
    "time: give every thread or request one of its own, {kind}.from_pipe(pipe, scheduler=...) with a scheduler of its "
    "own, which shares the engine."
)


@dataclass
class Settings:
    """What `accelerate` was asked for, shared by every pipeline that uses the transformer.

    Attributes:
        strict: whether what can't be carried out is an error instead of a dense run.
        told: rows of the prompts behind embeddings, as the caller said.
        encoded: what the pipeline encoded so far.
        guided: whether the last prompts were encoded for guidance, where a loop of the user's own can't say.
    """

    strict: bool = False
    told: tuple[Row, ...] = ()
    guided: bool = False

    def __post_init__(self) -> None:
        self.encoded = EncodedPrompts()


class _Text:
    """The embeddings a call is conditioned on, the halves of guidance pairs apart, and how often they were written to.

    Args:
        tensors: [B, ...], the same at every step of a run unless somebody changes them.
        halves: their rows' names in order, "cond" and "uncond" where they are pairs.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], halves: Sequence[str]) -> None:
        self._whole = [(tensor, _version(tensor)) for tensor in tensors]
        self._parts = {
            half: [(part, _version(tensor)) for tensor in tensors for part in [tensor.chunk(len(halves))[k]]]
            for k, half in enumerate(halves)
        }

    def is_of(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these are the very tensors, not written to since: nearly always, and asked at every step."""
        before = zip(self._whole, tensors, strict=True)
        return all(own is now and version == _version(now) for (own, version), now in before)

    def same(self, other: _Text) -> bool:
        """Whether the halves both have are unchanged. Waits for the device where they lie elsewhere in memory."""
        for half in self._parts.keys() & other._parts.keys():
            for (own, version), (now, later) in zip(self._parts[half], other._parts[half], strict=True):
                if own.shape != now.shape:
                    return False
                here = own.data_ptr() == now.data_ptr() and own.stride() == now.stride()
                if version != later if here else not torch.equal(own, now):
                    return False
        return True


class RunTracker:
    """Follows one pipeline. It serves one run at a time, from one thread.

    Args:
        manifest: the bundle's.
        geometry: the size of it that is run.
        session: its opened engine, which trackers share.
        settings: shared as well.
        policy: what to compute when.
        weights: a sentence on which weights run.
    """

    def __init__(
        self, manifest: Manifest, geometry: Geometry, session: Any, settings: Settings, policy: Policy, weights: str
    ) -> None:
        self._manifest = manifest
        self._contract = session.contract
        self._layout = manifest.call.guidance.layout
        self._settings = settings
        self._policy = policy
        self._weights = weights
        self._arguments = Arguments(manifest.call, geometry)
        self._prompts = PromptWeights(manifest)
        self._denoiser = Denoiser(session, geometry.latents, manifest.bucket_fractions, manifest.call.guidance)
        self._timesteps: Any = None  # the scheduler's, of the current run
        self._seen: dict[str, int] | None = None  # branch to its last step, while a run is under way
        self._texts: dict[str, _Text] = {}
        self._thread = 0
        self._paired: int | None = None
        self._notes: tuple[str, ...] = ()
        self._changed: tuple[int, ...] = ()  # steps that began with another prompt than the one before
        self._mask = MaskWords(None)

    def report(self) -> RunReport:
        """The last run, or the current one so far."""
        report = self._denoiser.report()
        report.words = self._mask.words
        report.policy = self._run.policy.name
        report.weights = self._weights
        report.notes = (*self._notes, _changed(self._changed)) if self._changed else self._notes
        return report

    def step(self, caller: Caller, branch: str, hidden_states: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
        """One call of the transformer, by its own arguments; what it returns."""
        call = self._arguments.read(hidden_states, args, kwargs)
        self._check_gradients(call)
        scheduler = caller.pipe.scheduler
        if caller.displaced:
            raise InputError(_DISPLACED.format(kind=type(caller.pipe).__name__))
        if scheduler.timesteps is not self._timesteps:
            self._begin(caller, call)
        elif threading.get_ident() != self._thread:
            raise InputError(_DISPLACED.format(kind=type(caller.pipe).__name__))
        assert self._seen is not None
        i = self._step_index(scheduler, branch)
        if self._layout == "separate" and self._seen.get(branch) == i:
            branch = UNCONDITIONAL  # img2img pipelines don't say which call is which: it is the step's second
        if i <= self._seen.get(branch, -1):
            raise InputError(FOREIGN)
        paired = self._pairs(caller, call)
        self._follow_the_text(caller, call, i, branch, paired)
        self._seen[branch] = i
        return self._denoiser.step(i, replace(call, paired=paired), branch=branch)

    def _begin(self, caller: Caller, call: StepInputs) -> None:
        """Begin a run: T from the scheduler, the plan from the policy, token weights from the prompt."""
        scheduler = caller.pipe.scheduler
        self._timesteps, self._thread = None, threading.get_ident()  # not begun until all of it is known
        for spec in self._contract.inputs:
            if spec.kind == "label":
                _check_labels(call.conditioning[spec.name], spec)
        if caller.given.get("skip_guidance_layers"):
            raise InputError(
                "The pipeline was asked to guide by skipped layers (skip_guidance_layers), and an engine runs all of "
                "them; leave it out, or ax.restore(pipe) for this call."
            )
        first = getattr(scheduler, "begin_index", None) or 0
        steps = len(scheduler.timesteps) - first
        self._texts, self._seen, self._notes, self._changed = {}, {}, (), ()
        self._paired = None
        policy, plan = self._runnable(caller, steps)
        policy, plan, self._mask = self._masked(caller, call, policy, plan)
        clock: list[float] = [float(i) for i in range(steps)]
        if policy.extrapolation.clock == "sigma":
            if not hasattr(scheduler, "sigmas"):
                raise InputError(f'{type(scheduler).__name__} has no sigmas; take clock="step".')
            clock = scheduler.sigmas[first : first + steps].tolist()
        # Multistep solvers, and those that evaluate twice a step, extrapolate by themselves.
        self._require_fitted(caller, policy, first, steps)
        self._run = Run(policy, plan, clock, self._mask.weights, first_order=is_first_order(scheduler))
        self._denoiser.start(self._run)
        self._timesteps = scheduler.timesteps

    def _require_fitted(self, caller: Caller, policy: Policy, first: int, steps: int) -> None:
        """InputError where learned coefficients are for another sampler; a note where they are for another scale."""
        fitted = policy.extrapolation.coefficients
        if fitted is None:
            return
        scheduler = caller.pipe.scheduler
        sigmas = getattr(scheduler, "sigmas", torch.zeros(0))[first : first + steps + 1].tolist()
        if not moves_as_euler(scheduler) or not fitted.fit(sigmas):
            raise InputError(
                f"The coefficients of policy {policy.name} were fitted to {steps} Euler steps of flow matching from "
                f"sigma {fitted.sigmas[0]:g} to {fitted.sigmas[-2]:g}, and this run's steps by "
                f"{type(scheduler).__name__} are others; set the scheduler as it was, or take a policy without "
                "coefficients."
            )
        scale = caller.given.get(self._manifest.call.guidance.argument)
        if is_number(scale) and not math.isclose(scale, fitted.guidance, rel_tol=1e-3):
            self._note(
                f"the coefficients of policy {policy.name} were fitted at guidance {fitted.guidance:g}, and the run's "
                f"is {scale:g}: its pictures may be further from exact ones than was measured"
            )

    def _follow_the_text(self, caller: Caller, call: StepInputs, i: int, branch: str, paired: bool) -> None:
        """Notice embeddings that are others than at the step before."""
        order = (UNCONDITIONAL, CONDITIONAL) if self._layout == "uncond_cond" else (CONDITIONAL, UNCONDITIONAL)
        names = (self._contract.text_input, "pooled_projections")
        tensors = [call.conditioning[name] for name in names if name in call.conditioning]
        before = self._texts.get(branch)
        if before is not None and before.is_of(tensors):
            return
        now = _Text(tensors, order if paired else (branch,))
        if before is not None and not before.same(now):
            if branch == CONDITIONAL:
                self._begin_again(caller, call, i)
            else:
                self._denoiser.forget(branch)
        self._texts[branch] = now

    def _begin_again(self, caller: Caller, call: StepInputs, i: int) -> None:
        """Go on with another prompt from step i, densely at first, as the run began: nothing old is kept."""
        if not self._changed:  # in the log once, though it may be at every step
            _say(_changed((i,)))
        self._changed = (*self._changed, i)
        run = self._run
        if run.policy.affinity_steps(run.plan):
            policy, plan, self._mask = self._masked(caller, call, run.policy, run.plan, changed=True)
            run = Run(policy, plan, run.clock, self._mask.weights, first_order=run.first_order)
        symbols = run.plan.symbols
        dense = max(len(symbols) - len(symbols.lstrip("D")), *(k + 1 for k in run.policy.affinity_steps(run.plan)), 1)
        symbols = symbols[:i] + "D" * min(dense, len(symbols) - i) + symbols[i + dense :]
        run = replace(run, plan=replace(run.plan, symbols=symbols), since=i)
        self._run = run
        self._denoiser.go_on(run)

    def _runnable(self, caller: Caller, steps: int) -> tuple[Policy, Plan]:
        """The policy and its plan, or dense where the run is too short or the scheduler adds noise."""
        policy = self._policy
        buckets = self._manifest.sparse_fractions, self._manifest.range_shares
        try:
            plan = policy.plan(steps, *buckets)
        except TooFewStepsError as error:
            if self._settings.strict:
                raise
            self._note(f"policy {policy.name} can't plan {steps} steps ({error}) The run is dense")
            policy = Dense()
            plan = policy.plan(steps, *buckets)
        options = {"eta": caller.given.get("eta") or 0.0}
        if relies_on_the_solver(policy, plan) and adds_noise(caller.pipe.scheduler, options):
            reason = (
                f"{type(caller.pipe.scheduler).__name__} adds noise between steps as it is set, and policy "
                f"{policy.name} carries predictions from one step to another, which would end in noise"
            )
            if self._settings.strict:
                raise InputError(f"{reason}: take a deterministic scheduler, or the policy dense.")
            self._note(f"{reason}. The run is dense")
            policy = Dense()
            plan = policy.plan(steps, *buckets)
        return policy, plan

    def _masked(
        self, caller: Caller, call: StepInputs, policy: Policy, plan: Plan, *, changed: bool = False
    ) -> tuple[Policy, Plan, MaskWords]:
        """The words behind the mask, or the policy without one where there are none."""
        if not policy.affinity_steps(plan) or self._contract.text_input is None:
            return policy, plan, MaskWords(None)
        rows = self._rows(caller, call, changed=changed)
        text = call.conditioning[self._contract.text_input]
        mask = self._prompts.weigh(caller.pipe, rows, text.shape[1], policy.word_scoring)
        if mask.weights is None:
            remedy = "" if rows else "; say them with ax.words(pipe, prompts)"
            if self._settings.strict:
                raise InputError(f"Policy {policy.name} needs a mask from the prompt, but {mask.problem}{remedy}.")
            self._note(f"{mask.problem}, so policy {policy.name} runs without a mask{remedy}")
            policy = policy.without_mask()
            plan = policy.plan(len(plan), self._manifest.sparse_fractions, self._manifest.range_shares)
        return policy, plan, mask

    def _rows(self, caller: Caller, call: StepInputs, *, changed: bool) -> tuple[Row, ...]:
        """The prompt of every image of this call; empty where one isn't known."""
        text_name = self._contract.text_input
        assert text_name is not None
        text = call.conditioning[text_name]
        if self._pairs(caller, call):
            text = text.chunk(2)[1 if self._layout == "uncond_cond" else 0]
        images = text.shape[0]
        rows = rows_of(caller.given, caller.pipe)
        if rows and not changed:
            return repeated(rows, images)
        told = repeated(self._settings.told, images)
        if self._settings.told and not told:
            raise InputError(
                f"{len(self._settings.told)} prompts were said to be behind the embeddings, but the call makes "
                f"{images} pictures; give ax.words one prompt, or one for every picture."
            )
        return self._settings.encoded.rows(text) or told

    def _pairs(self, caller: Caller, call: StepInputs) -> bool:
        """Whether this call's rows are guidance pairs."""
        rows = call.hidden_states.shape[0]
        if not self._manifest.call.guidance.pairs or rows % 2:
            return False
        guided = caller.guided
        if guided is None:  # a loop of the user's own: as its prompts were encoded
            if self._paired is None:
                self._paired = rows
            guided = self._settings.guided and rows == self._paired
        return guided

    def _note(self, note: str) -> None:
        """Say what is otherwise than asked for: in the report, and once in the log."""
        if note not in self._notes:
            self._notes = (*self._notes, note)
            _say(note)

    def _step_index(self, scheduler: Any, branch: str) -> int:
        """Which step this is: the scheduler's own count, or this branch's calls where it keeps none (DDIM)."""
        if not hasattr(scheduler, "step_index"):
            return (self._seen or {}).get(branch, -1) + 1
        at = scheduler.step_index
        return 0 if at is None else at - (getattr(scheduler, "begin_index", None) or 0)

    @staticmethod
    def _check_gradients(call: StepInputs) -> None:
        """InputError where a caller would take the engine's output for a function that has a gradient."""
        if torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (call.hidden_states, call.timestep, *call.conditioning.values())
        ):
            raise InputError(
                "The transformer is called with tensors that require gradients, and an engine has none; call it under "
                "torch.no_grad(), or ax.restore(pipe) for gradients through the model."
            )


def _say(note: str) -> None:
    logger.warning("%s.", note[0].upper() + note[1:])


def _changed(steps: Sequence[int]) -> str:
    """What a report says of a prompt that was changed before these steps."""
    listed = ", ".join(map(str, steps))
    return f"the prompt was changed before step {listed}; from there on history, mask and dense beginning are new"


def _version(tensor: torch.Tensor) -> int:
    """How often it was written to; inference tensors don't count."""
    return 0 if tensor.is_inference() else tensor._version


def _check_labels(labels: torch.Tensor, spec: TensorSpec) -> None:
    """InputError for a label outside the model's table, beyond which a GPU would just read on; waits, once a run."""
    assert spec.limit is not None
    unknown = [label for label in labels.tolist() if not 0 <= label < spec.limit]
    if unknown:
        raise InputError(
            f"{spec.name} has {', '.join(map(str, unknown))}, but this model knows 0 to {spec.limit - 1:.0f} alone; "
            "choose among these."
        )
