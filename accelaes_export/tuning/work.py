"""The pictures of a tuning, and what is done with them: taught, plans searched, fitted and measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.tuning import Measured, TunedPlan
from accelaes_export.policies import Dense, Drift, DriftSchedule, Plan, Policy, PolicyWithPlan, from_name, options_of
from accelaes_export.policies.coefficients import MOST_APART
from accelaes_export.progress import BuildProgress, Stage
from accelaes_export.tuning.foresight import best_plan, misses_of
from accelaes_export.tuning.kept import Kept, fingerprint, key_of
from accelaes_export.tuning.measuring import Curve, Errors, curve_steps, errors
from accelaes_export.tuning.recording import Conditions, Recording, Schedules
from accelaes_export.tuning.search import Found, Space, evolved
from accelaes_export.tuning.walk import Fit, Teacher, ended, fit, followed, taught

FORESEEN = 1.5, 2.0, 2.5, 3.25
"""Steps of plans that a search begins with, over the budget."""

FORESEEN_ON = 5
"""Pictures that these are made with."""

POWER = 4
"""Plans are compared by the power mean of so high an exponent of their pictures' distances."""

FINALISTS = 3
"""Of the plans that a search finds best, so many are fitted and compared on all pictures."""


@dataclass(frozen=True)
class Candidate:
    """A plan of drift's to be tuned, without coefficients that it may have been tuned to before."""

    budget: float
    bare: Drift
    symbols: str

    @property
    def policy(self) -> Policy:
        return PolicyWithPlan(self.bare, self.symbols)


@dataclass(frozen=True)
class Searching:
    """How plans are searched.

    Attributes:
        evaluations: plans that are tried for a budget.
        pictures: that each is fitted on meanwhile, few at first and more where that is promising.
        most: steps of a plan at most.
        seed: of what is changed in them.
    """

    evaluations: int
    pictures: tuple[int, ...]
    most: int
    seed: int


class Work:
    """The pictures of a tuning.

    Args:
        conditions: of all pictures, those that plans are fitted on first.
        fitted_on: how many these are.
        versions: of what computes.
    """

    def __init__(
        self,
        bundle: Bundle,
        scale: float,
        conditions: Sequence[Conditions],
        fitted_on: int,
        recording: Recording,
        schedules: Schedules,
        kept: Kept,
        progress: BuildProgress,
        versions: dict[str, str],
    ) -> None:
        self._bundle, self._scale, self._kept, self._progress = bundle, scale, kept, progress
        self._conditions, self._fitted_on = conditions, fitted_on
        self._recording, self._schedules = recording, schedules
        files = {name: record.sha256 for name, record in bundle.manifest.files.items()}
        self._engine = key_of(files, scale, versions)

    def teach(self, steps: int) -> None:
        """Run the teacher, some pictures at a time."""
        size, schedule = self._bundle.manifest.geometry.contract.batch, self._schedules.of(steps)
        parts = [self._conditions[first : first + size] for first in range(0, len(self._conditions), size)]
        found: list[Sequence[torch.Tensor]] = []
        with self._progress.stage("teacher", f"{steps} dense steps of {len(self._conditions)} pictures") as stage:
            for part in parts:
                watch = partial(_tell, stage, len(found) / len(parts), len(parts) * steps)
                key = key_of(self._engine, fingerprint(part), schedule.sigmas)
                make = partial(taught, self._bundle, part, schedule, self._scale, watch)
                found.append(self._kept.latents("teacher", key, make))
        start = torch.cat([own.latents for own in self._conditions])
        self._teacher = Teacher(schedule.sigmas, (start, *(torch.cat(states) for states in zip(*found, strict=True))))

    def searched(self, candidate: Candidate, also: Sequence[str], how: Searching) -> list[str]:
        """The best plans for a budget, best first: as they end when fitted on a few pictures.

        Args:
            also: plans to begin with beside the candidate's own, of any cost.
        """
        buckets = self._bundle.manifest.sparse_fractions
        costs = {"D": 1.0, ".": 0.0, **Plan("D", buckets).letters}
        space = Space(costs, candidate.budget, how.most)
        counts = sorted({min(count, self._fitted_on) for count in how.pictures})
        rungs = [self._rung(candidate, slice(count)) for count in counts]
        with self._progress.stage("search", f"budget {candidate.budget:g}, {how.evaluations} plans") as stage:

            def watch(tried: int, best: Found) -> None:
                stage.update(tried / how.evaluations)

            starts = (candidate.symbols, *self._foreseen(candidate.budget, space), *also)
            found = evolved(space, starts, rungs, evaluations=how.evaluations, seed=how.seed, watch=watch)
        return [one.symbols for one in found] or [candidate.symbols]

    def _foreseen(self, budget: float, space: Space) -> Iterator[str]:
        """Plans that miss least along the teacher's way, of several lengths, with no letter and with the largest two.

        What small buckets miss isn't seen there, as caches aren't.
        """
        pictures = slice(min(FORESEEN_ON, self._fitted_on))
        letters = sorted(set(space.costs) - {"D", "."}, key=lambda letter: -space.costs[letter])
        for share in FORESEEN:
            steps = round(share * budget)
            if not 3 <= steps <= space.most:
                continue
            seen = followed(
                self._bundle,
                self._conditions[pictures],
                self._schedules.of(steps),
                self._scale,
                self._teacher.of(pictures),
            )
            for letter in ("", *letters[:2]):
                costs = {symbol: space.costs[symbol] for symbol in (".", "D", *letter)}
                found = best_plan(misses_of(seen, costs, MOST_APART), budget)
                if found is not None:
                    yield found

    def _rung(self, candidate: Candidate, pictures: slice) -> Callable[[str], float]:
        """How far a plan's pictures end from the teacher's when it is fitted on the first few of them."""
        given = self._seen, self._teacher.sigmas, options_of(candidate.bare), pictures.stop
        known = self._kept.distances(f"search-{candidate.budget:g}-{pictures.stop}", key_of(*given, POWER))

        def distance(symbols: str) -> float:
            return known.of(symbols, lambda: _distance(self._fit(candidate.bare, symbols, pictures), self._teacher))

        return distance

    def tuned(self, candidate: Candidate, finalists: Sequence[str]) -> TunedPlan:
        """The best of some plans with its coefficients, and what they gain on the pictures that are held out."""
        given = options_of(candidate.bare), candidate.symbols, finalists, sorted(self._curve.runs)
        key = key_of(self._seen, self._teacher.sigmas, *given)
        made = self._kept.plan(f"plan-{candidate.budget:g}", key, partial(self._tuned, candidate, finalists))
        measured = made.measured
        self._progress.note(
            f"budget {candidate.budget:g}: {measured.before:.4g} from the teacher by hand, {measured.after:.4g} tuned "
            f"(worst picture {measured.worst_before:.4g}, {measured.worst_after:.4g})"
        )
        return made

    def measure_dense(self, steps: int, exact_steps: int, date: str, prompt: str) -> None:
        """Draw the held-out pictures as the teacher ends and by plain dense steps, on a model of so many."""
        testing = slice(self._fitted_on, None)
        pictures = self._conditions[testing]
        lengths = curve_steps(steps, exact_steps)
        self._prompt = prompt
        self._exact = self._recording.pictures(self._teacher.of(testing).end, prompt)
        runs: dict[int, Errors] = {}
        with self._progress.stage("measure", f"{len(pictures)} held-out pictures by dense steps") as stage:
            for T in lengths:
                schedule = self._schedules.of(T)
                key = key_of(self._engine, fingerprint(pictures), schedule.sigmas)
                make = partial(ended, self._bundle, pictures, schedule, self._scale, Dense())
                (ends,) = self._kept.latents(f"dense-{T}", key, partial(_alone, make))
                drawn = self._recording.pictures(ends, prompt)
                runs[T] = errors(drawn, self._exact)
                if T == steps:
                    self._dense = drawn
                stage.update(len(runs) / len(lengths))
        self._curve = Curve(runs, exact_steps, date)

    def _tuned(self, candidate: Candidate, finalists: Sequence[str]) -> TunedPlan:
        learning, testing = slice(self._fitted_on), slice(self._fitted_on, None)
        found: list[tuple[float, str, Fit]] = []
        for symbols in finalists:
            with self._progress.stage("fit", f"budget {candidate.budget:g}, {symbols}") as stage:
                one = self._fit(candidate.bare, symbols, learning, partial(_tell, stage, 0.0, len(symbols)))
            found.append((_distance(one, self._teacher), symbols, one))
        _, symbols, best = min(found, key=lambda one: one[0])
        learned = from_name("drift", options_of(candidate.bare) | {"plan": symbols, "learned": best.coefficients})
        pictures = self._conditions[testing]
        with self._progress.stage("measure", f"budget {candidate.budget:g}, {len(pictures)} held-out pictures"):
            by_hand, by_tuned = (
                ended(self._bundle, pictures, self._schedules.of(steps), self._scale, own)
                for steps, own in ((len(candidate.symbols), candidate.policy), (len(symbols), learned))
            )
            drawn = self._recording.pictures(by_tuned, self._prompt)
        before, after = (_errors(ends, self._teacher.of(testing)) for ends in (by_hand, by_tuned))
        quality = self._curve.quality(errors(drawn, self._exact), errors(drawn, self._dense))
        own = candidate.bare.extrapolation
        return TunedPlan(
            schedule=DriftSchedule(symbols, own.theta, own.trend, own.cache_reach, best.coefficients, quality),
            measured=Measured(before=before[0], worst_before=before[1], after=after[0], worst_after=after[1]),
        )

    def _fit(self, bare: Drift, symbols: str, pictures: slice, watch: Callable[[int], None] | None = None) -> Fit:
        """A plan's coefficients, fitted on some of the pictures."""
        schedule = self._schedules.of(len(symbols))
        teacher, conditions = self._teacher.of(pictures), self._conditions[pictures]
        theta = bare.extrapolation.theta
        runs = self._bundle, conditions, schedule, self._scale
        return fit(*runs, bare, symbols, teacher, theta=theta, watch=watch)

    @cached_property
    def _seen(self) -> str:
        """Key of what everything here depends on."""
        return key_of(self._engine, fingerprint(self._conditions), self._fitted_on)


def _alone(make: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
    return [make()]


def _tell(stage: Stage, before: float, steps: int, done: int) -> None:
    stage.update(before + done / steps)


def _distance(fit: Fit, teacher: Teacher) -> float:
    """Of the pictures that were fitted on, which are the teacher's first: a mean in which the farthest weigh most.

    Of few pictures the plain mean would choose plans by which one picture in fifty goes another way.
    """
    square = (fit.latents - teacher.of(slice(fit.latents.shape[0])).end).square().flatten(1).mean(dim=1)
    return square.pow(POWER / 2).mean().pow(1 / POWER).item()


def _errors(found: torch.Tensor, teacher: Teacher) -> tuple[float, float]:
    """Root mean square distance at the end, of all pictures and of the worst."""
    square = (found - teacher.end).square().flatten(1).mean(dim=1)
    return math.sqrt(square.mean().item()), math.sqrt(square.max().item())
