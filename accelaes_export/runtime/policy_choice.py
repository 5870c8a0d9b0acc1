"""The policy a bundle runs: its default one or one by name, with the bundle's own options and plans."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from accelaes_export.contract.manifest import Manifest
from accelaes_export.errors import InputError
from accelaes_export.policies import ModelFacts, Plan, Policy, from_name


def policy_for(
    manifest: Manifest, name: str | None = None, options: Mapping[str, Any] = MappingProxyType({})
) -> Policy:
    """The policy `name`, or the bundle's default, with `options`, and drift with the bundle's plan for its budget.

    The bundle's default options hold for its default policy, under what is given. InputError for a name or an
    option that doesn't exist.
    """
    defaults = manifest.defaults
    if name is None or name == defaults.policy:
        name, options = defaults.policy, defaults.policy_options | dict(options)
    return from_name(name, options, ModelFacts(defaults.steps, manifest.sparse_fractions, defaults.plans))


def plan_for(manifest: Manifest, policy: Policy, steps: int) -> Plan:
    """The policy's plan of T = `steps`; InputError where it has none, or the model lacks the text it needs."""
    plan = policy.plan(steps, manifest.sparse_fractions, manifest.range_shares)
    if policy.affinity_steps(plan) and "affinity" not in manifest.contract.has:
        raise InputError(f"Policy {policy.name} needs a mask from the text, and this model has no text; leave it out.")
    return plan
