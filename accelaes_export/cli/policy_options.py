"""The policy a command line asks for: the bundle's default one unless named, with the options given."""

from __future__ import annotations

from typing import Any

from accelaes_export.manifest import Manifest
from accelaes_export.policies import Plan, Policy, named


def chosen_policy(manifest: Manifest, name: str | None, **options: Any) -> Policy:
    """The policy `name`, or the bundle's default; None among `options` means not given.

    The bundle's default options hold for its default policy, under what is given. InputError for a name or an
    option that doesn't exist.
    """
    defaults = manifest.defaults
    given = {option: value for option, value in options.items() if value is not None}
    if name is None or name == defaults.policy:
        return named(defaults.policy, **(defaults.policy_options | given))
    return named(name, **given)


def sparse_buckets(manifest: Manifest) -> tuple[float, ...]:
    """The fractions n/N below 1, which a plan's letters stand for."""
    return tuple(fraction for fraction in manifest.bucket_fractions if fraction < 1)


def default_plan(manifest: Manifest) -> Plan:
    """The plan stored in the bundle."""
    return Plan(manifest.defaults.plan, sparse_buckets(manifest))
