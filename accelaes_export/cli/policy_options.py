"""What a command line says of policies: their labels, options, steps and plans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from accelaes_export.contract.manifest import Manifest
from accelaes_export.errors import InputError
from accelaes_export.policies import Plan, Policy, named
from accelaes_export.runtime.policy_choice import policy_for


def parsed_options(written: Sequence[str]) -> dict[str, Any]:
    """Policy options from NAME=VALUE, the value written as in a recipe: 0.3, true, none, [0.4, 0.7]."""
    import yaml

    options: dict[str, Any] = {}
    for text in written:
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


def labelled_policies(manifest: Manifest, written: str) -> dict[str, Policy]:
    """Policies by label from "stepcache,drift:budget=12", where NAME:OPTION=VALUE:... gives options; labels as written.

    Commas inside brackets belong to a value. InputError for what can't be read, or given twice.
    """
    policies: dict[str, Policy] = {}
    for label in (part.strip() for part in re.split(r",(?![^\[]*\])", written)):
        name, *options = label.split(":")
        if not name:
            raise InputError(
                f"--policies is {written!r}, which has an empty name; give names with commas between them."
            )
        if label in policies:
            raise InputError(f"Policy {label} is given twice; give it once.")
        # Bare dense is the reference, whatever options the bundle's default policy has.
        policies[label] = named("dense") if label == "dense" else policy_for(manifest, name, parsed_options(options))
    return policies


def default_plan(manifest: Manifest) -> Plan:
    """The plan stored in the bundle."""
    return Plan(manifest.defaults.plan, manifest.sparse_fractions, manifest.range_shares)
