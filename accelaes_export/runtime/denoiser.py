"""The denoiser: one loop for every policy, from a plan's steps to engine calls.

A pipeline's batch may be larger than the engine's. It is worked in trajectories of as many images as one call
takes, each with a state of its own, so nothing leaks from one image to another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from accelaes_export.backends.base import Session
from accelaes_export.errors import InputError
from accelaes_export.manifest import Latents
from accelaes_export.policies.plan import StepKind
from accelaes_export.runtime.report import RunReport, StepTimer
from accelaes_export.runtime.trajectory import Conditions, Run, Trajectory


class Denoiser:
    """Runs plans on a session. One denoiser serves one run at a time; the session may be shared by many.

    Args:
        session: an opened engine.
        latents: its geometry.
        fractions: the bundle's bucket fractions n/N, 1.0 included, in the order of the contract's buckets.
    """

    def __init__(self, session: Session, latents: Latents, fractions: Sequence[float]) -> None:
        self.session = session
        self.latents = latents
        self._tokens_of = {0.0: 0, **dict(zip(fractions, session.contract.buckets, strict=True))}
        self._run: Run | None = None

    def start(self, run: Run) -> None:
        """Begin a run; whatever an earlier one left, finished or cancelled, is dropped."""
        self._run = run
        self._trajectories: list[Trajectory] = []
        self._timer = StepTimer(self.session.device)

    def step(
        self,
        i: int,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: Mapping[str, torch.Tensor],
        guidance: float | None,
    ) -> torch.Tensor:
        """What the transformer would return for step i.

        Args:
            i: step index in sampling order, 0 … T-1.
            hidden_states: [B, C, Hl, Wl]; with guidance b unconditional rows, then the b conditional ones.
            timestep: [B].
            conditioning: the remaining inputs by name, first axis B.
            guidance: the scale s the pipeline is about to apply, or None where there are no pairs.

        Returns:
            [B, C, Hl, Wl] such that the pipeline's own u + s(c - u) gives the policy's prediction: a dense step
            without region-wise guidance returns the pair as the model made it; any other step has the guided
            prediction (Eq. 11-13) in both halves, which the formula leaves as it is, whatever s.

        Raises:
            InputError: a shape this bundle wasn't built for, or a step outside the plan.
        """
        if self._run is None:
            raise InputError("No run was started; call Denoiser.start before the first step.")
        if not 0 <= i < len(self._run.plan):
            raise InputError(
                f"Step {i} is outside this run's plan of {len(self._run.plan)} steps, 0 to {len(self._run.plan) - 1}."
            )
        self._check(hidden_states, guidance)
        images = hidden_states.shape[0] // (1 if guidance is None else 2)
        n = self._tokens_of[self._run.plan[i].fraction]
        now = Conditions(hidden_states, timestep, conditioning, guidance)
        self._timer.start()
        trajectories = self._trajectories_for(images)
        if len(trajectories) == 1:
            kind, result = trajectories[0].step(i, n, now)
        else:
            kind, result = self._in_turn(trajectories, i, n, now)
        self._timer.stop(i, kind, self.latents.tokens if kind is StepKind.DENSE else n)
        return result.to(hidden_states)

    def _in_turn(
        self, trajectories: list[Trajectory], i: int, n: int, now: Conditions
    ) -> tuple[StepKind, torch.Tensor]:
        """One step of every trajectory, each with its own rows of the batch, which lie in both halves of the pairs."""
        images = sum(trajectory.images for trajectory in trajectories)
        halves = 1 if now.guidance is None else 2
        results: list[torch.Tensor] = []
        kind, first = StepKind.SKIP, 0
        for trajectory in trajectories:
            last = first + trajectory.images

            def own(tensor: torch.Tensor, first: int = first, last: int = last) -> torch.Tensor:
                return tensor.unflatten(0, (halves, images))[:, first:last].flatten(0, 1)

            conditioning = {name: own(tensor) for name, tensor in now.conditioning.items()}
            part = Conditions(own(now.hidden_states), own(now.timestep), conditioning, now.guidance)
            kind, prediction = trajectory.step(i, n, part)
            results.append(prediction.unflatten(0, (halves, trajectory.images)))
            first = last
        return kind, torch.cat(results, dim=1).flatten(0, 1)

    def report(self) -> RunReport:
        """The current run so far. Waits for the device."""
        if self._run is None:
            raise InputError("No run was started yet, so there is nothing to report.")
        focus = [t.focus_index for t in self._trajectories if t.focus_index is not None]
        affinity = [t.affinity for t in self._trajectories if t.affinity is not None]
        return RunReport(
            plan=self._run.plan,
            tokens=self.latents.tokens,
            steps=self._timer.steps(),
            focus_index=torch.cat(focus) if focus else None,
            affinity=torch.cat(affinity) if affinity else None,
        )

    def _check(self, hidden_states: torch.Tensor, guidance: float | None) -> None:
        given, built = tuple(hidden_states.shape[1:]), self.latents
        if given != (built.channels, built.height, built.width):
            height, width = built.height * built.vae_scale, built.width * built.vae_scale
            raise InputError(
                f"Latents of shape {given} were given, but this bundle was built for "
                f"{(built.channels, built.height, built.width)}; call the pipeline with height={height}, width={width}"
                ", or build a bundle for that resolution."
            )
        if guidance is not None and hidden_states.shape[0] % 2:
            raise InputError(f"Guidance needs pairs of rows, but {hidden_states.shape[0]} rows were given.")

    def _trajectories_for(self, images: int) -> list[Trajectory]:
        """The run's trajectories, made at its first step. A call takes the contract's batch of pairs."""
        run = self._run
        assert run is not None
        if sum(trajectory.images for trajectory in self._trajectories) != images:
            size = self.session.contract.batch
            self._trajectories = []
            for first in range(0, images, size):
                own = slice(first, min(first + size, images))
                weights = None if run.token_weights is None else run.token_weights[own]
                self._trajectories.append(Trajectory(self.session, self.latents, run, own.stop - own.start, weights))
        return self._trajectories
