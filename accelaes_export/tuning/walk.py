"""Runs of many pictures in step with each other: the teacher's, the pupil's while its weights are fitted, and tests."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.dtypes import torch_dtype
from accelaes_export.contract.manifest import Manifest
from accelaes_export.contract.patches import patchify, picture_of, unpatchify
from accelaes_export.contract.tensors import BACKGROUND_PREDICTION, HIDDEN_STATES, TIMESTEP
from accelaes_export.policies import Coefficients, Dense, Policy
from accelaes_export.policies.guidance import guided, with_free_channels
from accelaes_export.policies.history_state import weighed
from accelaes_export.policies.planned import PolicyWithCoefficients
from accelaes_export.policies.programs import Tensors, history_of, programs_of
from accelaes_export.runtime.denoiser import Denoiser
from accelaes_export.runtime.step_inputs import StepInputs
from accelaes_export.runtime.trajectory import Run
from accelaes_export.tuning.fitting import Key, NormalEquations, fitted, lies_in_the_table
from accelaes_export.tuning.foresight import Seen
from accelaes_export.tuning.recording import Conditions, Schedule, together

Watch = Callable[[int], None]
"""Called after every step with how many are done."""


class Moves:
    """How latents move by what the transformer says: guidance, and Euler's step.

    Args:
        scale: of guidance.
    """

    def __init__(self, manifest: Manifest, schedule: Schedule, scale: float) -> None:
        self._guidance, self._latents = manifest.call.guidance, manifest.geometry.latents
        self._schedule, self._scale = schedule, scale

    def halves(self, rows: torch.Tensor, *, paired: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Unconditional and conditional rows [b, N, w]; the same twice where there is no guidance."""
        if not paired:
            return rows, rows
        first, second = rows.chunk(2)
        return (first, second) if self._guidance.layout == "uncond_cond" else (second, first)

    def moved(self, i: int, x: torch.Tensor, rows: torch.Tensor, *, paired: bool) -> torch.Tensor:
        """Latents [b, ...] after step i, from rows [B, N, w]."""
        uncond, cond = self.halves(rows, paired=paired)
        if paired:
            cond = self.with_free(guided(uncond, cond, self._scale), cond)
        direction = unpatchify(cond, self._latents)
        if not self._latents.packed:
            direction = direction[:, : self._latents.out_channels]  # without a learned variance
        return x + self._change(i) * direction

    def wanted(self, i: int, x: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """The prediction [b, N, w] that would lead from latents x at step i to `there`."""
        return patchify((there - x) / self._change(i), self._latents)

    def with_free(self, whole: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        """`whole`, but `cond` in the channels that aren't guided."""
        return with_free_channels(whole, cond, self._guidance.channels, self._latents.out_channels)

    def _change(self, i: int) -> float:
        sigmas = self._schedule.sigmas
        return self._schedule.sign * (sigmas[i + 1] - sigmas[i])


class Walk:
    """Pictures of one bundle on their way, in as many parts as engine calls are made for.

    Attributes:
        latents: of every part [b, ...].
        spans: which of all pictures each part has.

    Args:
        conditions: of every picture.
        scale: of guidance.
    """

    def __init__(self, bundle: Bundle, conditions: Sequence[Conditions], schedule: Schedule, scale: float) -> None:
        manifest, self._schedule, self._scale = bundle.manifest, schedule, scale
        self._latents, self._moves = manifest.geometry.latents, Moves(manifest, schedule, scale)
        guidance = manifest.call.guidance
        session, size = bundle.session(), manifest.geometry.contract.batch
        self._types = {spec.name: torch_dtype(spec.dtype) for spec in session.contract.inputs}
        self._parts = together(conditions, size)
        ends = list(accumulate(part.images for part in self._parts))
        self.spans = [slice(end - part.images, end) for end, part in zip(ends, self._parts, strict=True)]
        self._denoisers = [Denoiser(session, self._latents, manifest.bucket_fractions, guidance) for _ in self._parts]
        self.latents = [part.latents for part in self._parts]
        self._picture = picture_of(self._latents, guidance, component=BACKGROUND_PREDICTION in session.contract.has)
        self._buckets = manifest.sparse_fractions, manifest.range_shares

    def start(self, policy: Policy, watching: Callable[[int, Tensors], None] | None = None) -> None:
        """Begin; `watching` is told of every part's state when its prediction is asked for, which is then its last."""
        plan = policy.plan(self._schedule.steps, *self._buckets)
        own = {program.name: program.compute for program in programs_of(policy, self._picture)}
        for k, denoiser in enumerate(self._denoisers):
            programs = dict(own)
            if watching is not None:

                def extrapolate(tensors: Tensors, k: int = k) -> Mapping[str, torch.Tensor]:
                    watching(k, tensors)
                    return {"predicted": tensors["prediction.0"].clone()}

                programs["extrapolate"] = extrapolate
            clock = [float(i) for i in range(self._schedule.steps)]
            denoiser.start(Run(policy, plan, clock), programs)

    def rows(self, i: int, k: int) -> torch.Tensor:
        """What the transformer says at step i of part k: rows [B, N, w] fp32."""
        part, x = self._parts[k], self.latents[k]
        both = torch.cat([x, x]) if part.paired else x
        timestep = torch.full((both.shape[0],), self._schedule.timesteps[i]).to(self._types[TIMESTEP])
        now = StepInputs(both.to(self._types[HIDDEN_STATES]), timestep, part.conditioning, part.paired)
        with torch.no_grad():
            return patchify(self._denoisers[k].step(i, now).float(), self._latents)

    def halves(self, rows: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Unconditional and conditional rows [b, N, w]; the same twice where there is no guidance."""
        return self._moves.halves(rows, paired=self._parts[k].paired)

    def move(self, i: int, k: int, rows: torch.Tensor) -> None:
        """Take the step from rows [B, N, w]."""
        self.latents[k] = self._moves.moved(i, self.latents[k], rows, paired=self._parts[k].paired)

    def columns(self, predictions: Sequence[torch.Tensor], k: int) -> list[torch.Tensor]:
        """What the weights of both halves multiply [b, N, w]: three for each half, or three without guidance."""
        pairs = [self.halves(prediction, k) for prediction in predictions]
        if not self._parts[k].paired:
            return [cond for _, cond in pairs]
        nothing = torch.zeros_like(pairs[0][0])
        free = self._moves.with_free
        return [free((1 - self._scale) * uncond, nothing) for uncond, _ in pairs] + [
            free(self._scale * cond, cond) for _, cond in pairs
        ]

    def wanted(self, i: int, k: int, there: torch.Tensor) -> torch.Tensor:
        """The prediction [b, N, w] that would lead from here to latents `there` [b, ...]."""
        return self._moves.wanted(i, self.latents[k], there)

    @property
    def parts(self) -> range:
        return range(len(self._parts))

    def carried_out(self, policy: Policy, watch: Watch | None = None) -> Iterator[torch.Tensor]:
        """All pictures' latents [b, ...] after every step of a run by `policy`."""
        self.start(policy)
        for i in range(self._schedule.steps):
            for k in self.parts:
                self.move(i, k, self.rows(i, k))
            if watch is not None:
                watch(i + 1)
            yield torch.cat(self.latents)


def taught(
    bundle: Bundle, conditions: Sequence[Conditions], schedule: Schedule, scale: float, watch: Watch | None
) -> list[torch.Tensor]:
    """Latents [b, ...] of a dense run after each of its steps."""
    return list(Walk(bundle, conditions, schedule, scale).carried_out(Dense(), watch))


@dataclass(frozen=True)
class Teacher:
    """Where pictures are in the runs that are taken for right.

    Attributes:
        sigmas: [S + 1], falling.
        latents: [b, ...] at each of them.
    """

    sigmas: tuple[float, ...]
    latents: tuple[torch.Tensor, ...]

    def at(self, sigma: float) -> torch.Tensor:
        """Latents [b, ...] at any sigma: between two steps on the line, as Euler's are; outside, the first or last."""
        i = bisect_left(self.sigmas, -sigma, key=lambda own: -own)
        if i in (0, len(self.sigmas)):
            return self.latents[min(i, len(self.sigmas) - 1)]
        high, low = self.sigmas[i - 1], self.sigmas[i]
        return torch.lerp(self.latents[i - 1], self.latents[i], (high - sigma) / (high - low))

    def of(self, pictures: slice) -> Teacher:
        """Some pictures'."""
        return Teacher(self.sigmas, tuple(own[pictures] for own in self.latents))

    @property
    def end(self) -> torch.Tensor:
        return self.latents[-1]


@dataclass(frozen=True)
class Fit:
    """Fitted coefficients, and where the pictures they were fitted on ended [b, ...]."""

    coefficients: Coefficients
    latents: torch.Tensor


def fit(
    bundle: Bundle,
    conditions: Sequence[Conditions],
    schedule: Schedule,
    scale: float,
    policy: Policy,
    symbols: str,
    teacher: Teacher,
    *,
    theta: float,
    watch: Watch | None = None,
) -> Fit:
    """Fit a plan's coefficients step by step: every step from where the steps before it have led.

    Args:
        policy: chooses the tokens of sparse steps.
        teacher: of these pictures.
        theta: of the rule that weights are held to.
    """
    walk = Walk(bundle, conditions, schedule, scale)
    nothing = Coefficients(schedule.sigmas, scale, ((),) * schedule.steps)
    seen: dict[int, Tensors] = {}
    walk.start(PolicyWithCoefficients(policy, symbols, nothing), lambda k, tensors: seen.update({k: dict(tensors)}))
    steps: list[tuple] = []
    for i in range(schedule.steps):
        there = teacher.at(schedule.sigmas[i + 1])
        sums: dict[Key, NormalEquations] = {}
        for k in walk.parts:
            walk.rows(i, k)
            known = _differences(seen[k])
            columns = walk.columns(known, k)
            wanted = walk.wanted(i, k, there[walk.spans[k]])
            for key, mask in _classes(i, seen[k], walk, k):
                own = torch.stack([column[mask].flatten() for column in columns], dim=1).double().numpy()
                sums.setdefault(key, NormalEquations(len(columns))).add(
                    own, wanted[mask].flatten().double().numpy(), int(mask.sum())
                )
        found = [fitted(key, own, theta) for key, own in sums.items() if lies_in_the_table(key)]
        steps.append(tuple(sorted(found, key=lambda one: (one.age, one.gap, one.earlier))))
        now = Coefficients(schedule.sigmas, scale, (*steps, *((),) * (schedule.steps - i - 1)))
        table = now.table()
        for k in walk.parts:
            walk.move(i, k, weighed(history_of(seen[k], 2), float(i), seen[k]["conditional"], now, table))
        if watch is not None:
            watch(i + 1)
    return Fit(Coefficients(schedule.sigmas, scale, tuple(steps)), torch.cat(walk.latents))


def _differences(tensors: Tensors) -> list[torch.Tensor]:
    """E_0, E_0 - E_1, E_1 - E_2 of all rows."""
    newest, before, first = (tensors[f"prediction.{k}"] for k in range(3))
    return [newest, newest - before, before - first]


def _classes(i: int, tensors: Tensors, walk: Walk, k: int) -> Iterator[tuple[Key, torch.Tensor]]:
    """Every class there is among the conditional rows, and which tokens [b, N] are of it."""
    names = ("clock.0", "clock.1", "clock.2", "known", "drops")
    c0, c1, c2, known, drops = (walk.halves(tensors[name], k)[1] for name in names)
    gap, earlier = torch.where(known >= 2, c0 - c1, 0.0), torch.where(known >= 3, c1 - c2, 0.0)
    every = torch.stack([i - c0, gap, earlier, (drops > 0).float()], dim=-1)
    for row in np.unique(every.reshape(-1, 4).numpy(), axis=0):
        age, own_gap, own_earlier, stale = (int(number) for number in row)
        yield Key(age, own_gap, own_earlier, bool(stale)), (every == torch.from_numpy(row)).all(dim=-1)


def followed(
    bundle: Bundle, conditions: Sequence[Conditions], schedule: Schedule, scale: float, teacher: Teacher
) -> list[Seen]:
    """What a dense run of `schedule` would say if it were where the teacher is at each of its steps."""
    walk = Walk(bundle, conditions, schedule, scale)
    walk.start(Dense())
    found: list[Seen] = []
    for i in range(schedule.steps):
        columns: list[list[torch.Tensor]] = []
        wanted: list[torch.Tensor] = []
        for k in walk.parts:
            walk.latents[k] = teacher.at(schedule.sigmas[i])[walk.spans[k]]
            columns.append(walk.columns([walk.rows(i, k)], k))
            wanted.append(walk.wanted(i, k, teacher.at(schedule.sigmas[i + 1])[walk.spans[k]]))
        halves = tuple(torch.cat(half).double().numpy() for half in zip(*columns, strict=True))
        change = abs(schedule.sigmas[i + 1] - schedule.sigmas[i])
        found.append(Seen(halves, torch.cat(wanted).double().numpy(), change))
    return found


def ended(
    bundle: Bundle, conditions: Sequence[Conditions], schedule: Schedule, scale: float, policy: Policy
) -> torch.Tensor:
    """Latents [b, ...] at the end of a run by `policy`."""
    *_, last = Walk(bundle, conditions, schedule, scale).carried_out(policy)
    return last
