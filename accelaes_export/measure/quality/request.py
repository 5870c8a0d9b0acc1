"""What an evaluation is to measure, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelaes_export.bundle.reading import Bundle
from accelaes_export.checks import require_once
from accelaes_export.contract.manifest import Manifest
from accelaes_export.errors import InputError
from accelaes_export.measure.quality.metric_names import check_names
from accelaes_export.measure.quality.report import DENSE
from accelaes_export.policies import registry
from accelaes_export.policies.base import Policy
from accelaes_export.policies.dense import Dense
from accelaes_export.runtime.policy_choice import plan_for, policy_for, steps_beside

_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class EvaluationRequest:
    """What to measure.

    Attributes:
        prompts: distinct ones, in order.
        policies: by label, in order; dense is evaluated in any case, as the reference.
        seeds: of the first noise: every prompt is drawn with each.
        steps: T; see `steps_beside`.
        guidance: scale; None: the bundle's.
        metrics: names of `metrics.load_metrics`; None: whatever is built in and there.
        checkpoint: where the pipeline is, if not where the manifest says.

    Raises:
        InputError: a value outside its range, or one given twice.
    """

    prompts: tuple[str, ...]
    policies: Mapping[str, Policy]
    seeds: tuple[int, ...] = (1,)
    steps: int | None = None
    guidance: float | None = None
    metrics: tuple[str, ...] | None = None
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("No prompt was given; give at least one.")
        require_once("Prompt", map(repr, self.prompts))
        if not self.seeds:
            raise InputError("No seed was given; give at least one, such as 1.")
        require_once("Seed", self.seeds)
        for seed in self.seeds:
            if not 0 <= seed <= _LARGEST_SEED:
                raise InputError(f"Seed {seed} was given; allowed are 0 to {_LARGEST_SEED}.")
        if self.steps is not None and self.steps < 2:
            raise InputError(f"{self.steps} denoising steps were asked for; allowed are at least 2.")
        if self.guidance is not None and not 0 <= self.guidance < float("inf"):
            raise InputError(f"Guidance {self.guidance:g} was given; give a scale of at least 0.")
        if self.policies.get(DENSE, Dense()) != Dense():
            raise InputError(f"The label {DENSE} is the reference's; label a dense policy with options otherwise.")
        if self.metrics is not None:
            if not self.metrics:
                raise InputError("No metric was given; name at least one, such as psnr.")
            check_names(self.metrics)

    @property
    def all_policies(self) -> dict[str, Policy]:
        """By label, dense first."""
        return {DENSE: Dense(), **{label: policy for label, policy in self.policies.items() if label != DENSE}}

    def steps_of(self, policy: Policy, manifest: Manifest) -> int:
        """T of a policy."""
        return steps_beside(policy, self.steps, manifest.defaults.steps)

    def check(self, bundle: Bundle) -> None:
        """InputError where a policy has no plan on this bundle, or the bundle has no pipeline to draw in."""
        from accelaes_export.runtime.generate import require_pipeline

        for policy in self.all_policies.values():
            plan_for(bundle.manifest, policy, self.steps_of(policy, bundle.manifest))
        require_pipeline(bundle, self.checkpoint)

    def as_dict(self, manifest: Manifest) -> dict[str, Any]:
        """Plain data, with the bundle's defaults filled in: equal where the same pictures would be made."""
        return {
            "policies": [
                {
                    "label": label,
                    "name": policy.name,
                    "options": registry.options_of(policy),
                    "steps": self.steps_of(policy, manifest),
                }
                for label, policy in self.all_policies.items()
            ],
            "seeds": list(self.seeds),
            "guidance": manifest.defaults.guidance if self.guidance is None else self.guidance,
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
            "prompts": list(self.prompts),
        }


def possible_policies(manifest: Manifest, steps: int | None) -> tuple[dict[str, Policy], dict[str, str]]:
    """Every policy with the bundle's or its own defaults, by name; and why this bundle can't have the others."""
    defaults = manifest.defaults
    found: dict[str, Policy] = {}
    impossible: dict[str, str] = {}
    for name in registry.names():
        try:
            policy = policy_for(manifest, name)
            plan_for(manifest, policy, steps_beside(policy, steps, defaults.steps))
        except InputError as error:
            impossible[name] = str(error)
        else:
            found[name] = policy
    return found, impossible
