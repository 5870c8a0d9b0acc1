"""What a command line says of policies: their labels, options, steps and plans."""

from __future__ import annotations

from accelaes_export.contract.manifest import Manifest
from accelaes_export.options import parse_label, parse_policies
from accelaes_export.policies import Plan, Policy, named
from accelaes_export.runtime.policy_choice import policy_for


def labelled_policies(manifest: Manifest, written: str) -> dict[str, Policy]:
    """Policies by label from "stepcache,drift:budget=12", where NAME:OPTION=VALUE:... gives options; labels as written.

    Commas inside brackets belong to a value. InputError for what can't be read, or given twice.
    """
    policies: dict[str, Policy] = {}
    for label in parse_policies("--policies", written):
        # Bare dense is the reference, whatever options the bundle's default policy has.
        policies[label] = named("dense") if label == "dense" else policy_for(manifest, *parse_label(label))
    return policies


def default_plan(manifest: Manifest) -> Plan:
    """The plan stored in the bundle."""
    return Plan(manifest.defaults.plan, manifest.sparse_fractions, manifest.range_shares)
