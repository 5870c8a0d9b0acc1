"""What a run did: the plan as carried out, times by step kind, the words behind the mask."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from accelaes_export.policies.plan import Plan, StepKind

if TYPE_CHECKING:
    import torch

    from accelaes_export.policies.words import WordWeights


@dataclass(frozen=True)
class StepRecord:
    """One denoising step: its index, kind, focus tokens n (0 for SKIP), seconds, and the block range it left out."""

    index: int
    kind: StepKind
    n: int
    seconds: float
    left_out: int | None = None


@dataclass(frozen=True)
class GraphUse:
    """CUDA graphs of a run's engine calls: how many were captured, and how many calls were replayed from one."""

    captured: int = 0
    replayed: int = 0


@dataclass
class RunReport:
    """Filled while a run goes on.

    Attributes:
        plan: what was planned.
        tokens: N.
        steps: what was done, in order.
        words: per prompt, the words and weights behind the mask (empty where no mask is used).
        focus_index: [b, n] of the last sparse step, or None.
        affinity: [b, N] the mask was built from, or None.
        policy: what ran, which is "dense" where the policy asked for couldn't.
        weights: which weights ran.
        notes: what was otherwise than asked for, a sentence each.
        nonfinite: by step, how many predicted numbers were infinite or not a number; empty for a sound run.
        graphs: none are captured on CPUs, nor where they are switched off.
    """

    plan: Plan
    tokens: int
    steps: list[StepRecord] = field(default_factory=list)
    words: tuple[WordWeights, ...] = ()
    focus_index: torch.Tensor | None = None
    affinity: torch.Tensor | None = None
    policy: str = ""
    weights: str = ""
    notes: tuple[str, ...] = ()
    nonfinite: dict[int, int] = field(default_factory=dict)
    graphs: GraphUse = GraphUse()

    @property
    def cost(self) -> float:
        """Computed token-steps in dense steps: the sum of n/N, times the share of blocks where a range was left out, or
        that the parts compute."""
        return sum(step.n * self._share(step) for step in self.steps) / self.tokens

    def _share(self, step: StepRecord) -> float:
        """How much of its tokens' work a step does."""
        if step.kind is StepKind.LAYERED:
            return self.plan[step.index].fraction
        return 1.0 if step.left_out is None else self.plan.shares[step.left_out]

    @property
    def dense_cost(self) -> float:
        """What a dense run of the same length costs."""
        return float(len(self.steps))

    @property
    def seconds(self) -> float:
        """Time of all steps, engine and policy together."""
        return sum(step.seconds for step in self.steps)

    def by_kind(self) -> dict[StepKind, list[float]]:
        """Step times in seconds, grouped by kind."""
        times: dict[StepKind, list[float]] = {}
        for step in self.steps:
            times.setdefault(step.kind, []).append(step.seconds)
        return times

    def as_dict(self) -> dict[str, Any]:
        """Plain data, e.g. for `run --save-json`."""
        return {
            "policy": self.policy,
            "weights": self.weights,
            "notes": list(self.notes),
            "nonfinite": {str(step): count for step, count in self.nonfinite.items()},
            "plan": str(self.plan),
            "buckets": list(self.plan.buckets),
            "tokens": self.tokens,
            "cost_in_dense_steps": self.cost,
            "dense_cost": self.dense_cost,
            "seconds": self.seconds,
            "cuda_graphs": asdict(self.graphs),
            "steps": [
                {"index": s.index, "kind": s.kind.name, "n": s.n, "milliseconds": 1e3 * s.seconds} for s in self.steps
            ],
            "words": [
                {
                    "scorer": w.scorer,
                    "fallback": w.fallback,
                    "weights": dict(zip(w.words, map(float, w.weights), strict=True)),
                }
                for w in self.words
            ],
        }


def nonfinite_sentence(nonfinite: dict[int, int]) -> str:
    """What to say of a run whose predictions were no numbers from some step on."""
    first = min(nonfinite)
    return (
        f"At step {first} the engine predicted {nonfinite[first]} numbers that are infinite or not a number, so the "
        "picture is none; the model overflows in the bundle's dtype (build with --dtype bf16 or fp32), or the latents "
        "or embeddings it was given did."
    )


class StepTimer:
    """Times steps without stopping a GPU: CUDA events are read only when the report is asked for."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[int, StepKind, int, int | None, Any, Any]] = []

    def start(self) -> None:
        """A step begins."""
        self._start = self._mark()

    def stop(self, index: int, kind: StepKind, n: int, left_out: int | None = None) -> None:
        """The step begun last ends."""
        self._marks.append((index, kind, n, left_out, self._start, self._mark()))

    def steps(self) -> list[StepRecord]:
        """All recorded steps, a step's several calls as one; waits for the device once."""
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        steps: dict[int, StepRecord] = {}
        for i, kind, n, left_out, start, end in self._marks:
            seconds = 1e-3 * start.elapsed_time(end) if self._cuda else end - start
            steps[i] = StepRecord(i, kind, n, seconds + (steps[i].seconds if i in steps else 0.0), left_out)
        return list(steps.values())

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
