"""The policy a command line asks for: the bundle's default one unless named, with the options given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from accelaes_export.contract.manifest import Manifest
from accelaes_export.errors import InputError
from accelaes_export.policies import Plan, Policy, named
from accelaes_export.policies.schedule import MOST_STEPS
from accelaes_export.runtime.policy_choice import policy_for


def chosen_policy(
    manifest: Manifest, name: str | None, more: Mapping[str, Any] = MappingProxyType({}), **options: Any
) -> Policy:
    """The policy `name`, or the bundle's default; None among `options` means not given, among `more` it is a value.

    InputError for a name or an option that doesn't exist, or is given twice.
    """
    given = {option: value for option, value in options.items() if value is not None}
    twice = sorted(set(given) & set(more))
    if twice:
        raise InputError(f"Policy option {twice[0]} is given twice; give it once.")
    return policy_for(manifest, name, given | dict(more))


def run_steps(manifest: Manifest, policy: Policy, given: int | None) -> int:
    """T: as given, or as many steps as the policy was made for, or the bundle's default.

    InputError for more than there are noise levels a model was trained at.
    """
    if given is not None and given > MOST_STEPS:
        raise InputError(
            f"{given} steps were asked for; allowed are up to {MOST_STEPS}, the noise levels these models were trained "
            "at: ask for fewer."
        )
    return given if given is not None else policy.own_steps or manifest.defaults.steps


def parsed_options(given: Sequence[str]) -> dict[str, Any]:
    """Policy options from NAME=VALUE, the value written as in a recipe: 0.3, true, none, [0.4, 0.7]."""
    import yaml

    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise InputError(f"Policy option {text!r} can't be read; write NAME=VALUE, such as theta=0.3.")
        if name in options:
            raise InputError(f"Policy option {name} is given twice; give it once.")
        try:
            options[name] = None if value.strip().lower() == "none" else yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date or number that can't be one
            raise InputError(f"Policy option {name} is {value!r}, which can't be read; write it as in YAML.") from None
    return options


def labelled_policies(manifest: Manifest, given: str) -> dict[str, Policy]:
    """Policies by label from "stepcache,drift:budget=12", where NAME:OPTION=VALUE:... gives options; labels as written.

    Commas inside brackets belong to a value. InputError for what can't be read, or given twice.
    """
    policies: dict[str, Policy] = {}
    for label in (part.strip() for part in re.split(r",(?![^\[]*\])", given)):
        name, *options = label.split(":")
        if not name:
            raise InputError(f"--policies is {given!r}, which has an empty name; give names with commas between them.")
        if label in policies:
            raise InputError(f"Policy {label} is given twice; give it once.")
        # Bare dense is the reference, whatever options the bundle's default policy has.
        policies[label] = named("dense") if label == "dense" else chosen_policy(manifest, name, parsed_options(options))
    return policies


def default_plan(manifest: Manifest) -> Plan:
    """The plan stored in the bundle."""
    return Plan(manifest.defaults.plan, manifest.sparse_fractions, manifest.range_shares)
