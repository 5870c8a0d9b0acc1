"""Peers: the same weights in diffusers, plain, compiled and with step caches, in the same loop and the same rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import torch

from accelaes_export.measure.profiling.denoise import DenoiseProblem
from accelaes_export.measure.profiling.peer_caches import DIFFUSERS_CACHES, CacheDit, StepCachePeer, Wanted
from accelaes_export.measure.profiling.peer_models import blocks_of, give_text_on, tell, with_shared_weights
from accelaes_export.measure.profiling.peer_search import matching_knob
from accelaes_export.measure.profiling.report import AbsentPeer, DenoiseProfile
from accelaes_export.measure.profiling.request import CACHE_DIT, COMPILE, DIFFUSERS, EAGER
from accelaes_export.measure.profiling.spans import Span, Spans
from accelaes_export.measure.profiling.timing import Timing, first_call, ratios, spread, stopwatch
from accelaes_export.policies.plan import Plan
from accelaes_export.runtime.step_inputs import StepInputs

Arguments = Callable[[Mapping[str, torch.Tensor]], Mapping[str, Any]]
"""From a step's inputs by the contract's names to the keyword arguments of the diffusers model."""


@dataclass
class PeerRun:
    """One peer on one problem: a piece of work for the rounds.

    Attributes:
        name, settings, versions: for the report.
        model: what is called; it shares its weights with every other peer.
        plan: D for every step in which the whole network runs, as counted, and . for every other.
        wanted: full computes that were to be reached; None: all are.
    """

    name: str
    model: Any
    problem: DenoiseProblem
    spans: Spans
    arguments: Arguments
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    cache: StepCachePeer | None = None
    plan: str = ""
    wanted: int | None = None
    first_seconds: float = 0.0
    taken: list[tuple[Span, ...]] = field(default_factory=list)

    def __call__(self) -> torch.Tensor:
        """From noise to latents [b, ...]."""
        if self.cache is not None:
            self.cache.begin(self.model, self.problem.steps)
        arguments: dict[str, dict[str, Any]] = {}  # arguments that are the same at every step, as a pipeline keeps them

        def predict(i: int, now: StepInputs, branch: str) -> torch.Tensor:
            step = {"hidden_states": now.hidden_states, "timestep": now.timestep}
            if branch not in arguments:
                arguments[branch] = dict(self.arguments({**step, **now.conditioning}))
            arguments[branch] |= step
            if self.cache is None:
                return self.model(**arguments[branch])[0]
            with self.cache.context(self.model, branch):
                return self.model(**arguments[branch])[0]

        with torch.no_grad():
            return self.problem.run(predict, self.spans, self.name)

    def keep(self) -> None:
        """Keep the spans of the run that just ended; the device has done it."""
        self.taken.append(self.spans.take())

    def profile(self, timings: Mapping[str, Timing], dense: str) -> DenoiseProfile:
        """The figures, once the rounds are over; `dense` names the piece this one is compared with."""
        own = timings[self.name]
        seconds, steps = spread(own.rounds), self.problem.steps
        full = self.plan.count("D") if self.plan else steps
        return DenoiseProfile(
            name=self.name,
            settings=self.settings,
            images=self.problem.images,
            plan=self.plan or "D" * steps,
            engine_calls=full * len(self.problem.calls),
            first_seconds=self.first_seconds,
            seconds=seconds,
            rounds=tuple(own.rounds),
            images_per_second=self.problem.images / seconds.median,
            dense_over_this=ratios(timings[dense], own) if dense in timings else None,
            full_computes=full,
            wanted_computes=self.wanted,
            versions=self.versions,
        )


class Peers:
    """Makes the peers that were asked for.

    Args:
        model: the diffusers transformer, on the device, in the bundle's dtype. It is never changed: every peer works on
            a copy of its modules that shares its weights.
        arguments: how it is called.
        names: of `request.PEERS`.
        plan: whose number of full computes the caches are set to.
    """

    def __init__(self, model: torch.nn.Module, arguments: Arguments, names: Sequence[str], plan: Plan) -> None:
        self._model, self._arguments, self._names = model, arguments, names
        self._wanted = Wanted.of(plan)

    def runs(
        self, problem: DenoiseProblem, spans: Spans, progress: Callable[[str], None] | None = None
    ) -> tuple[list[PeerRun], list[AbsentPeer]]:
        """The peers for one problem, and those that can't be measured here or on this model."""
        runs, absent = [], []
        for name, make in self._makers(problem, spans):
            if progress is not None:
                progress(name)
            try:
                runs.append(make())
            except _NotInstalled as error:
                absent.append(AbsentPeer(name=name, reason=f"{error} isn't installed", remedy=f"pip install {error}"))
            except Exception as error:  # a peer's failure on this model is a result, not ours
                absent.append(AbsentPeer(name=name, reason=_reason(error, self._model), remedy=""))
        return runs, absent

    def _makers(self, problem: DenoiseProblem, spans: Spans) -> list[tuple[str, Callable[[], PeerRun]]]:
        caches: list[type[StepCachePeer]] = list(DIFFUSERS_CACHES) if DIFFUSERS in self._names else []
        caches += [CacheDit] if CACHE_DIT in self._names else []
        makers: list[tuple[str, Callable[[], PeerRun]]] = []
        if EAGER in self._names:
            makers.append(("diffusers eager", partial(self._plain, "diffusers eager", problem, spans)))
        if COMPILE in self._names:
            makers.append(("torch.compile", partial(self._plain, "torch.compile", problem, spans, dynamic=False)))
        for kind in caches:
            found: dict[str, Any] = {}  # what both, plain and compiled, are set to: they compute at the same steps
            makers.append((kind.name, partial(self._cached, kind, problem, spans, found, compiled=False)))
            if COMPILE in self._names:
                name = f"{kind.name}, compiled"
                makers.append((name, partial(self._cached, kind, problem, spans, found, compiled=True)))
        return makers

    def _plain(self, name: str, problem: DenoiseProblem, spans: Spans, **compiled: Any) -> PeerRun:
        """The model as it is, or compiled with the given options of torch.compile."""
        model = torch.compile(self._model, **compiled) if compiled else self._model
        return _tried(PeerRun(name, model, problem, spans, self._arguments, compiled, _versions("diffusers")))

    def _cached(
        self, kind: type[StepCachePeer], problem: DenoiseProblem, spans: Spans, found: dict[str, Any], *, compiled: bool
    ) -> PeerRun:
        if find_spec(kind.package.replace("-", "_")) is None:
            raise _NotInstalled(kind.package)
        if not found:
            found.update(self._matched(kind(), problem, spans))
        cache, settings = found["cache"], found["settings"]
        model = self._on(cache, settings, problem, compiled=compiled)
        name, packages = f"{cache.name}, compiled" if compiled else cache.name, _versions("diffusers", cache.package)
        run = _tried(PeerRun(name, model, problem, spans, self._arguments, settings, packages, cache=cache))
        run.wanted, run.plan = self._wanted.count, found["plan"]
        if compiled:  # rounding differs, and with it perhaps what a threshold decides
            run.plan = self._computed(cache, settings, problem, spans, compiled=True)
        return run

    def _matched(self, cache: StepCachePeer, problem: DenoiseProblem, spans: Spans) -> dict[str, Any]:
        """The settings with which the cache computes as often as is wanted, or nearly, and the plan that makes."""
        wanted = self._wanted
        cache.prepare(
            lambda model: _tried(PeerRun(cache.name, model, problem, spans, self._arguments, cache=cache)),
            lambda: with_shared_weights(self._model),
            wanted,
        )
        plans: dict[float, str] = {}

        def computes(knob: float) -> int:
            plans[knob] = self._computed(cache, cache.settings(wanted, knob), problem, spans, compiled=False)
            return plans[knob].count("D")

        knob, _ = matching_knob(computes, wanted.count, *cache.knobs(wanted), guess=cache.guess(wanted))
        return {"cache": cache, "settings": cache.settings(wanted, knob), "plan": plans[knob]}

    def _on(
        self,
        cache: StepCachePeer,
        settings: dict[str, Any],
        problem: DenoiseProblem,
        *,
        compiled: bool,
        called: Callable[[], None] | None = None,
    ) -> Any:
        """A model with the cache switched on; `called` is told whenever the last block's attention really runs."""
        model = with_shared_weights(self._model)
        last = blocks_of(model)[-1]
        if getattr(last, "context_pre_only", False):
            give_text_on(last)
        for part in cache.beneath(model) if compiled else ():
            part.forward = torch.compile(part.forward, dynamic=False)
        if called is not None:
            tell(cache.tail(model), called)
        cache.enable(model, settings, separate=len(problem.calls) > 1)
        return model

    def _computed(
        self, cache: StepCachePeer, settings: dict[str, Any], problem: DenoiseProblem, spans: Spans, *, compiled: bool
    ) -> str:
        """At which steps the whole network ran, D, or was skipped, counted in a run of its own."""
        computed: list[bool] = []  # of every call
        model = self._on(cache, settings, problem, compiled=compiled, called=lambda: computed.__setitem__(-1, True))
        model.register_forward_pre_hook(lambda *_: computed.append(False))
        _tried(PeerRun(cache.name, model, problem, spans, self._arguments, cache=cache))
        calls = len(problem.calls)
        return "".join("D" if any(computed[i * calls : (i + 1) * calls]) else "." for i in range(problem.steps))


class _NotInstalled(Exception):
    """A peer's package isn't there."""


def _tried(run: PeerRun) -> PeerRun:
    """The run, carried out once: whether it works at all shows before the rounds, and what it compiles is timed."""
    run.first_seconds = first_call(run, stopwatch(run.problem.device))
    run.spans.take()
    return run


def _versions(*packages: str) -> dict[str, str]:
    return {package: metadata.version(package) for package in ("torch", *packages)}


def _reason(error: Exception, model: Any) -> str:
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return f"it doesn't run on {type(model).__name__}: {type(error).__name__}: {first}"
