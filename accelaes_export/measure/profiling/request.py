"""What a profile is to measure, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelaes_export.checks import require_once
from accelaes_export.contract.manifest import Manifest
from accelaes_export.errors import InputError, did_you_mean
from accelaes_export.policies import registry
from accelaes_export.policies.base import Policy
from accelaes_export.policies.dense import Dense
from accelaes_export.policies.plan import Plan
from accelaes_export.runtime.policy_choice import plan_for, steps_beside

EAGER, COMPILE, DIFFUSERS, CACHE_DIT = "eager", "compile", "diffusers-caches", "cache-dit"
PEERS = (EAGER, COMPILE, DIFFUSERS, CACHE_DIT)
"""What a bundle can be compared with; see `peers.py`."""

_LARGEST_BATCH = 1024


@dataclass(frozen=True)
class ProfileRequest:
    """What to measure.

    Attributes:
        policies: by label, in order; "dense" is what the others are compared with.
        steps: T; see `steps_beside`.
        batches: pictures made together; more than one engine call takes are worked in turns.
        warmup: rounds before the measured ones.
        iterations: measured rounds.
        against: of PEERS.
        checkpoint: where weights and pipeline are, if not where the manifest says.

    Raises:
        InputError: a value outside its range, or one given twice.
    """

    policies: Mapping[str, Policy]
    steps: int | None = None
    batches: tuple[int, ...] = (1,)
    warmup: int = 3
    iterations: int = 20
    against: tuple[str, ...] = ()
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        if not self.policies:
            raise InputError("No policy was given; name at least one, such as dense.")
        require_once("Batch", self.batches)
        require_once("Peer", self.against)
        for batch in self.batches:
            if not 1 <= batch <= _LARGEST_BATCH:
                raise InputError(f"Batch {batch} was given; allowed are 1 to {_LARGEST_BATCH} pictures.")
        if self.steps is not None and self.steps < 2:
            raise InputError(f"{self.steps} denoising steps were asked for; allowed are at least 2.")
        if self.warmup < 0 or self.iterations < 1:
            raise InputError(
                f"{self.warmup} warm-up and {self.iterations} measured rounds were given; "
                "allowed are 0 or more and 1 or more."
            )
        for name in self.against:
            if name not in PEERS:
                raise InputError(
                    f"There is no peer {name!r}; allowed are {', '.join(PEERS)}.{did_you_mean(name, PEERS)}"
                )

    def steps_of(self, policy: Policy | None, manifest: Manifest) -> int:
        """T of a policy; of None that of dense, which all are compared with."""
        return steps_beside(Dense() if policy is None else policy, self.steps, manifest.defaults.steps)

    def plans(self, manifest: Manifest) -> dict[str, Plan]:
        """Every policy's plan on this bundle; InputError where it has none, or the model lacks what it needs."""
        return {label: plan_for(manifest, p, self.steps_of(p, manifest)) for label, p in self.policies.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "policies": [
                {"label": label, "name": p.name, "options": registry.options_of(p)}
                for label, p in self.policies.items()
            ],
            "steps": self.steps,
            "batches": list(self.batches),
            "warmup": self.warmup,
            "iterations": self.iterations,
            "against": list(self.against),
        }
