"""The denoiser: one loop for every policy, from a plan's steps to engine calls.

A pipeline's batch may be larger than the engine's. It is worked in trajectories of as many images as one call
takes, each with a state of its own, so nothing leaks from one image to another. Pipelines that guide with a second
call a step have a branch for each, with caches of their own and one selector.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from accelaes_export.backends.base import Session
from accelaes_export.backends.workspace import Desk
from accelaes_export.contract.geometry import Latents
from accelaes_export.contract.manifest import Guidance
from accelaes_export.contract.patches import patchify, picture_of
from accelaes_export.contract.tensors import BACKGROUND_PREDICTION
from accelaes_export.errors import InputError
from accelaes_export.policies.base import Policy
from accelaes_export.policies.gating import Decisions, GateState
from accelaes_export.policies.plan import StepKind
from accelaes_export.policies.planned import require_runnable
from accelaes_export.policies.programs import Compute, nothing_seen, programs_of
from accelaes_export.policies.selection import FocusSets
from accelaes_export.runtime.policy_choice import require_layers, require_text_for
from accelaes_export.runtime.report import GraphUse, RunReport, StepTimer, nonfinite_sentence
from accelaes_export.runtime.step_inputs import StepInputs
from accelaes_export.runtime.trajectory import Run, Trajectory

logger = logging.getLogger("accelaes_export")

CONDITIONAL = "cond"
"""The branch whose text is the prompt, as diffusers' `cache_context` calls it."""
UNCONDITIONAL = "uncond"


class Denoiser:
    """Runs plans on a session. One denoiser serves one run at a time; the session may be shared by many.

    Args:
        session: an opened engine.
        latents: its geometry.
        fractions: the bundle's bucket fractions n/N, 1.0 included, in the order of the contract's buckets.
        guidance: how the family's pipelines guide.
    """

    def __init__(self, session: Session, latents: Latents, fractions: Sequence[float], guidance: Guidance) -> None:
        self.session = session
        self.latents = latents
        self.guidance = guidance
        self._tokens_of = dict(zip(fractions, session.contract.buckets, strict=True))
        self._run: Run | None = None
        self._desk = Desk(session.workspaces)

    def start(self, run: Run, programs: Mapping[str, Compute] | None = None) -> None:
        """Begin a run; whatever an earlier one left, finished or cancelled, is dropped.

        Args:
            run: plan and policy.
            programs: the policy's by name, where they aren't computed as they stand: a bundle's own, opened.

        Raises:
            InputError: a policy that needs what this engine or pipeline doesn't have, or a plan it can't carry out.
        """
        require_runnable(run.policy, run.plan)
        ranges = self.session.contract.ranges
        if len(run.plan.shares) > len(ranges):
            raise InputError(
                f"The plan is for a bundle with {len(run.plan.shares)} block ranges, and this one has {len(ranges)}; "
                "plan with this bundle's."
            )
        require_layers(run.plan, self.session.contract)
        require_text_for(run.policy, run.plan, self.session.contract)
        if run.policy.spatial_guidance is not None and not self.guidance.pairs:
            raise InputError(
                "Guidance by region needs both halves of a guidance pair in one call, and this family's pipelines "
                f"{'guide with a second call' if self.guidance.layout == 'separate' else 'have none'}; "
                "leave spatial_cfg out."
            )
        self._run = run
        self._desk.begin()
        self._programs = self._programs_of(run.policy) if programs is None else programs
        self._branches: dict[str, list[Trajectory]] = {}
        self._sets: list[FocusSets | None] = []
        self._decisions = self._deciding(run)
        self._timer = StepTimer(self.session.device)
        self._nonfinite: list[tuple[int, torch.Tensor]] = []
        self._warned = False

    def _programs_of(self, policy: Policy) -> dict[str, Compute]:
        """A policy's programs by name, as they stand."""
        component = BACKGROUND_PREDICTION in self.session.contract.has
        picture = picture_of(self.latents, self.guidance, component=component)
        return {program.name: program.compute for program in programs_of(policy, picture)}

    def _deciding(self, run: Run) -> Decisions | None:
        """The decisions of a run whose plan isn't the last word."""
        gate = run.policy.gate()
        if gate is None:
            return None

        def unseen(latents: torch.Tensor) -> GateState:
            shape = latents.shape[0], self.latents.tokens, self.latents.token_width
            return nothing_seen(gate, latents, latents.new_zeros(shape))

        return Decisions(self._programs["decide"], self._programs.get("observe"), unseen)

    def go_on(self, run: Run) -> None:
        """Go on with another prompt: what was predicted, cached and chosen for the old one is dropped."""
        if self._run is not None and run.policy != self._run.policy:
            self._programs = self._programs_of(run.policy)
        self._run = run
        self._branches, self._sets = {}, []
        self._decisions = self._deciding(run)

    def forget(self, branch: str) -> None:
        """Drop what was predicted and cached in a branch: its text changed."""
        self._branches.pop(branch, None)

    def step(self, i: int, now: StepInputs, *, branch: str = CONDITIONAL) -> torch.Tensor:
        """What the transformer would return for step i.

        Args:
            i: step index in sampling order, 0 … T-1.
            now: the call's tensors, rows of all images.
            branch: which of a step's calls this is.

        Returns:
            [B, ...] such that the pipeline's own u + s(c - u) gives the policy's prediction: each row is predicted
            by itself, except under region-wise guidance, where both halves hold the guided prediction (Eq. 11),
            which the formula leaves as it is, whatever s.

        Raises:
            InputError: a shape this bundle wasn't built for, or a step outside the plan.
        """
        if self._run is None:
            raise InputError("No run was started; call Denoiser.start before the first step.")
        if not 0 <= i < len(self._run.plan):
            raise InputError(
                f"Step {i} is outside this run's plan of {len(self._run.plan)} steps, 0 to {len(self._run.plan) - 1}."
            )
        self._check(now)
        self._desk.touch()
        images = now.hidden_states.shape[0] // (2 if now.paired else 1)
        self._timer.start()
        last = i + 1 == len(self._run.plan)
        skipped = self._decisions is not None and not self._decisions.computes(i, now.hidden_states, last=last)
        planned = self._run.plan[i]
        sparse = planned.kind is StepKind.SPARSE and not skipped
        n = self._tokens_of[planned.fraction] if sparse else 0
        trajectories = self._trajectories_for(images, branch, now.paired)
        for trajectory in trajectories if now.renewed else ():
            trajectory.renew()
        if len(trajectories) == 1:
            kind, result = trajectories[0].step(i, n, now, skipped=skipped)
        else:
            kind, result = self._in_turn(trajectories, i, n, now, skipped)
        left_out = planned.left_out if kind is StepKind.PARTIAL else None
        self._timer.stop(i, kind, self.latents.tokens if kind.whole else n, left_out)
        result = result.to(now.hidden_states)
        if self._decisions is not None and kind is not StepKind.SKIP and branch == CONDITIONAL:
            self._decisions.observe(patchify(result, self.latents))
        self._count_nonfinite(i, result)
        return result

    def _count_nonfinite(self, i: int, result: torch.Tensor) -> None:
        """Count the numbers that are none, on the device; a GPU is asked for them with the report."""
        # In one pass on the host, whose numbers aren't waited for (numpy, as torch's own way counts as waiting).
        if result.device.type == "cpu" and math.isfinite(result.sum(dtype=torch.float32).numpy()):
            return
        count = torch.isfinite(result).logical_not_().sum()
        self._nonfinite.append((i, count))
        if count.device.type == "cpu" and not self._warned and count.numpy():  # of the host's own: nothing to wait for
            self._warned = True
            logger.warning(nonfinite_sentence(self._nonfinite_steps()))

    def _nonfinite_steps(self) -> dict[int, int]:
        """How many numbers were none at each step that had any. Waits for the device."""
        if not self._nonfinite:
            return {}
        counts = torch.stack([count for _, count in self._nonfinite]).tolist()
        found: dict[int, int] = {}
        for (i, _), count in zip(self._nonfinite, counts, strict=True):
            if count:
                found[i] = found.get(i, 0) + count
        return found

    def _in_turn(
        self, trajectories: list[Trajectory], i: int, n: int, now: StepInputs, skipped: bool
    ) -> tuple[StepKind, torch.Tensor]:
        """One step of every trajectory, each with its own rows of the batch, which lie in both halves of the pairs."""
        images = sum(trajectory.images for trajectory in trajectories)
        halves = 2 if now.paired else 1
        shared = {spec.name for spec in self.session.contract.inputs if spec.shape[0] != "B"}
        results: list[torch.Tensor] = []
        kind, first = StepKind.SKIP, 0
        for trajectory in trajectories:
            last = first + trajectory.images

            def own(tensor: torch.Tensor, first: int = first, last: int = last) -> torch.Tensor:
                return tensor.unflatten(0, (halves, images))[:, first:last].flatten(0, 1)

            conditioning = {name: t if name in shared else own(t) for name, t in now.conditioning.items()}
            part = StepInputs(own(now.hidden_states), own(now.timestep), conditioning, now.paired)
            kind, prediction = trajectory.step(i, n, part, skipped=skipped)
            results.append(prediction.unflatten(0, (halves, trajectory.images)))
            first = last
        return kind, torch.cat(results, dim=1).flatten(0, 1)

    def report(self) -> RunReport:
        """The current run so far. Waits for the device."""
        if self._run is None:
            raise InputError("No run was started yet, so there is nothing to report.")
        conditional = self._branches.get(CONDITIONAL, [])
        focus = [t.focus_index for t in conditional if t.focus_index is not None]
        affinity = [t.affinity for t in conditional if t.affinity is not None]
        plan, steps = self._run.plan, self._timer.steps()
        if self._decisions is not None:  # the plan of such a policy is what it may compute at most
            done = {step.index: "." if step.kind is StepKind.SKIP else plan.symbols[step.index] for step in steps}
            plan = replace(plan, symbols="".join(done.get(i, symbol) for i, symbol in enumerate(plan.symbols)))
        return RunReport(
            plan=plan,
            tokens=self.latents.tokens,
            steps=steps,
            focus_index=torch.cat(focus) if focus else None,
            affinity=torch.cat(affinity) if affinity else None,
            graphs=GraphUse(self._desk.captures, self._desk.replays),
            nonfinite=self._nonfinite_steps(),
        )

    def _check(self, now: StepInputs) -> None:
        shape = tuple(now.hidden_states.shape[1:])
        if shape != self.latents.shape:
            raise InputError(
                f"Latents of shape {shape} were given, but this bundle was built for {self.latents.shape}; "
                f"call the pipeline with {self.latents.asked_for} (and use_resolution_binning=False where it bins "
                "sizes), or build a bundle for that size."
            )
        if now.paired and now.hidden_states.shape[0] % 2:
            raise InputError(f"Guidance needs pairs of rows, but {now.hidden_states.shape[0]} rows were given.")

    def _trajectories_for(self, images: int, branch: str, paired: bool) -> list[Trajectory]:
        """The run's trajectories, made at its first step. A call takes as many images as the contract has rows for."""
        run = self._run
        assert run is not None
        if any(
            sum(trajectory.images for trajectory in trajectories) != images for trajectories in self._branches.values()
        ):
            self._branches, self._sets = {}, []
        if branch not in self._branches:
            size = self.session.contract.batch if paired else self.session.contract.rows
            spans = [slice(first, min(first + size, images)) for first in range(0, images, size)]
            selector = run.policy.selector()
            self._sets = self._sets or [None if selector is None else FocusSets(selector) for _ in spans]
            conditional = branch == CONDITIONAL
            weights = run.token_weights if conditional else None
            self._branches[branch] = [
                Trajectory(
                    self.session,
                    partial(self._desk.place, (branch, own.start)),
                    self.latents,
                    self.guidance,
                    run,
                    self._programs,
                    own.stop - own.start,
                    sets,
                    None if weights is None else weights[own],
                    conditional=conditional,
                )
                for own, sets in zip(spans, self._sets, strict=True)
            ]
        return self._branches[branch]
