"""Do a bundle's presets do what its policies do in Python? Whole runs of both on the engine, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelaes_export.building.fair_inputs import LOUDNESS, accounts, nudged, of_loudness
from accelaes_export.contract.geometry import Geometry
from accelaes_export.contract.manifest import Manifest
from accelaes_export.contract.presets import Preset
from accelaes_export.contract.tensors import HIDDEN_STATES, TIMESTEP
from accelaes_export.policies import Plan, Policy, StepKind, from_name
from accelaes_export.policies.guidance import guided
from accelaes_export.runtime.denoiser import CONDITIONAL, UNCONDITIONAL, Denoiser
from accelaes_export.runtime.step_inputs import StepInputs
from accelaes_export.runtime.trajectory import Run

if TYPE_CHECKING:
    import torch

    from accelaes_export.backends.base import Session
    from accelaes_export.backends.graphs import OpenedGraph

TOLERANCE = 1e-4
"""Of a step's largest prediction: sums in another order, carried on through a run."""
_SCALE = 4.0


@dataclass(frozen=True)
class PresetParity:
    """A run of a preset's programs against one of its policy in Python.

    Attributes:
        steps: T.
        max_rel: the largest difference of a prediction, over the largest prediction of its step.
        focus: focus tokens chosen in all, and `differing` of them otherwise.
        plan: as it was carried out, where a gate decided; the same in both, or `max_rel` is infinite.
    """

    name: str
    steps: int
    plan: str
    max_rel: float
    focus: int
    differing: int
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        return self.max_rel <= self.tolerance and not self.differing


def compare_preset(
    session: Session,
    manifest: Manifest,
    geometry: Geometry,
    preset: Preset,
    programs: Mapping[str, OpenedGraph],
    update: Callable[[float, str], None] | None = None,
) -> PresetParity:
    """One run of `preset` by its own programs and one by Python's, from the same noise, text and weights.

    Each run's latents follow its own predictions, so what differs once is carried on; where that alone makes too much
    of it, with quieter text (`fair_inputs`).
    """
    policy = from_name(preset.policy, preset.options)
    plan = Plan(preset.plans[preset.steps], manifest.sparse_fractions, manifest.range_shares)

    def walk(loudness: float, given: Mapping[str, OpenedGraph] | None, *, moved: bool = False) -> _Walk:
        return _Walk(session, manifest, geometry, policy, plan, given, loudness, moved)

    def itself(loudness: float) -> PresetParity:
        return _compared(preset.name, plan, walk(loudness, None), walk(loudness, None, moved=True), update)

    for loudness in LOUDNESS:
        found = _compared(preset.name, plan, walk(loudness, None), walk(loudness, programs), update)
        if found.passed or not accounts(itself(loudness).max_rel, found.max_rel):
            break
    return found


def _compared(
    name: str, plan: Plan, wanted: _Walk, found: _Walk, update: Callable[[float, str], None] | None
) -> PresetParity:
    """Two runs step by step."""
    max_rel, focus, differing = 0.0, 0, 0
    for i in range(len(plan)):
        own, other = wanted.step(i), found.step(i)
        largest = own.abs().max().item()
        error = (other - own).abs().max().item() / max(largest, 1e-12)
        max_rel = max(max_rel, error if error == error else float("inf"))
        chosen, others = wanted.focus(), found.focus()
        if chosen is not None and others is not None:
            focus += chosen.numel()
            differing += int((chosen != others).sum())
        if update is not None:
            update((i + 1) / len(plan), name)
    carried_out = str(wanted.denoiser.report().plan)
    if carried_out != str(found.denoiser.report().plan):
        max_rel = float("inf")
    return PresetParity(name, len(plan), carried_out, max_rel, focus, differing)


class _Walk:
    """A run on made-up inputs, whose latents go where its predictions say.

    Args:
        programs: the policy's, or None for Python's own.
        loudness: of the text.
        moved: begin a rounding away.
    """

    def __init__(
        self,
        session: Session,
        manifest: Manifest,
        geometry: Geometry,
        policy: Policy,
        plan: Plan,
        programs: Mapping[str, Any] | None,
        loudness: float,
        moved: bool,
    ) -> None:
        import torch

        from accelaes_export.contract.example_inputs import example_inputs

        self._packed = geometry.latents.packed
        guidance, contract, T = manifest.call.guidance, geometry.contract, len(plan)
        self._guidance, self._steps = guidance, T
        drawn = (example_inputs(contract, contract.tokens, seed=seed, device=session.device) for seed in (0, 1))
        self._cond, self._other = (of_loudness(inputs, contract, loudness) for inputs in drawn)
        self._conditioning = contract.conditioning
        images = contract.rows // 2 if guidance.pairs else contract.rows
        begins = nudged(self._cond, contract) if moved else self._cond
        self._latents = begins[HIDDEN_STATES][:images].float()
        weights = torch.rand(images, contract.text_tokens, generator=torch.Generator().manual_seed(1))
        clock = [1 - i / T for i in range(T)] if policy.extrapolation.clock == "sigma" else [float(i) for i in range(T)]
        self.denoiser = Denoiser(session, geometry.latents, manifest.bucket_fractions, guidance)
        run = Run(policy, plan, clock, weights if policy.affinity_steps(plan) else None)
        self.denoiser.start(run, programs)

    def step(self, i: int) -> torch.Tensor:
        """The rows [B, ...] of step i, fp32, those of both calls where there are two."""
        import torch

        if self._guidance.layout == "separate":
            cond, uncond = self._call(i, self._cond, CONDITIONAL), self._call(i, self._other, UNCONDITIONAL)
            rows = torch.cat([cond, uncond])
        else:
            rows = cond = uncond = self._call(i, self._cond, CONDITIONAL)
            if self._guidance.pairs:
                first, second = rows.chunk(2)
                uncond, cond = (first, second) if self._guidance.layout == "uncond_cond" else (second, first)
        moved = guided(uncond, cond, _SCALE)
        if not self._packed:
            moved = moved[:, : self._latents.shape[1]]  # without a learned variance
        self._latents = self._latents + moved / moved.std().clamp(min=1e-6) / self._steps
        return rows

    def _call(self, i: int, inputs: Mapping[str, torch.Tensor], branch: str) -> torch.Tensor:
        import torch

        pairs = self._guidance.pairs
        latents = torch.cat([self._latents, self._latents]) if pairs else self._latents
        conditioning = {name: inputs[name] for name in self._conditioning}
        now = StepInputs(latents, inputs[TIMESTEP] * (1 - i / self._steps), conditioning, pairs)
        with torch.no_grad():
            return self.denoiser.step(i, now, branch=branch).float()

    def focus(self) -> torch.Tensor | None:
        """The focus index [b, n] of the last step, where it was sparse."""
        report = self.denoiser.report()
        return report.focus_index if report.steps[-1].kind is StepKind.SPARSE else None
