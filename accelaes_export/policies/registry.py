"""Policies by name, for the command line, manifests and services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from types import MappingProxyType
from typing import Any

from accelaes_export.errors import InputError, did_you_mean
from accelaes_export.policies.accelaes import AccelAes
from accelaes_export.policies.base import BasePolicy, ModelFacts, Policy, SpatialGuidance
from accelaes_export.policies.coefficients import Coefficients
from accelaes_export.policies.delta_dit import DeltaDiT
from accelaes_export.policies.dense import Dense, FewerSteps
from accelaes_export.policies.described import PolicyHelp, described
from accelaes_export.policies.diffsparse import DiffSparse
from accelaes_export.policies.drift import Drift
from accelaes_export.policies.easycache import EasyCache
from accelaes_export.policies.planned import PolicyWithCoefficients, PolicyWithDefaultPlan, PolicyWithPlan
from accelaes_export.policies.ras import RAS
from accelaes_export.policies.reuse import Fora, TaylorSeer
from accelaes_export.policies.stepcache import StepCache
from accelaes_export.policies.teacache import TeaCache

_REGISTERED: tuple[type[Any], ...] = (
    *(Dense, FewerSteps, StepCache, AccelAes, Drift, RAS),
    *(Fora, TaylorSeer, TeaCache, EasyCache, DeltaDiT, DiffSparse),  # what other papers do
)
_POLICIES: dict[str, type[Any]] = {policy.name: policy for policy in _REGISTERED}


def names() -> tuple[str, ...]:
    """Every policy's name."""
    return tuple(_POLICIES)


def from_name(name: str, options: Mapping[str, Any] = MappingProxyType({}), model: ModelFacts | None = None) -> Policy:
    """The policy called `name` with `options` in place of its defaults, suited to a model where one is given.

    ``spatial_cfg`` may be a mapping with the keys of SpatialGuidance, as a manifest stores it. ``plan``, which every
    policy has, is a plan's symbols, carried out in place of the policy's own, and ``learned`` are coefficients for
    it, as plain data or `Coefficients`. Options and plans given by hand stay as they are on every model; runs of
    another number of steps than a model's plan get the policy's own, but for a plan with coefficients, which has its
    own steps alone.

    Raises:
        InputError: for a name or option that doesn't exist (the message lists those that do), or a value out of range.
    """
    kind = _kind(name)
    options = dict(options)
    symbols, fitted = options.pop("plan", None), options.pop("learned", None)
    if model is not None:
        kind.check_on(options, model)
    _check_options(f"Policy {name}", kind, options)
    cfg = options.get("spatial_cfg")
    if isinstance(cfg, Mapping):
        _check_options("spatial_cfg", SpatialGuidance, cfg)
        options = {**options, "spatial_cfg": SpatialGuidance(**cfg)}
    policy: Any = kind(**options)
    if model is not None:
        policy = policy.suited_to(model)
    if symbols is not None:
        if not isinstance(symbols, str):
            raise InputError(f"plan is {symbols!r}; give one symbol a step, such as DDDD.b.D.b.")
        if fitted is not None:
            return PolicyWithCoefficients(policy, symbols, Coefficients.of(fitted))
        return PolicyWithPlan(policy, symbols)
    if fitted is not None:
        raise InputError("Coefficients were given without the plan they are for; give the plan's symbols as well.")
    own = None if model is None else policy.default_symbols(model)
    learned = None if model is None else policy.learned(model, options)
    if own is not None and learned is not None:
        return PolicyWithCoefficients(policy, own, learned)
    made: Policy = policy if own is None else PolicyWithDefaultPlan(policy, own)
    return made


def named(name: str, **options: Any) -> Policy:
    """`from_name` without a model."""
    return from_name(name, options)


def help_of(name: str) -> PolicyHelp:
    """What the policy called `name` does, and its options; InputError for one that doesn't exist."""
    return described(_kind(name))


def _kind(name: str) -> type[BasePolicy]:
    if name not in _POLICIES:
        raise InputError(
            f"There is no policy {name!r}; allowed are {', '.join(_POLICIES)}: give one of them."
            + did_you_mean(name, _POLICIES)
        )
    return _POLICIES[name]


def options_of(policy: Policy) -> dict[str, Any]:
    """The policy's options as plain data, so that ``named(policy.name, **options_of(policy)) == policy``.

    A model's own plan for a budget is among them as one given by hand.
    """
    if isinstance(policy, PolicyWithCoefficients):
        own = options_of(PolicyWithPlan(policy.policy, policy.symbols))
        return {**own, "learned": policy.coefficients.data()}
    if isinstance(policy, PolicyWithPlan):
        return {**options_of(policy.policy), "plan": policy.symbols}
    return asdict(policy)  # type: ignore[call-overload]


def _check_options(what: str, kind: type[Any], options: Mapping[str, Any]) -> None:
    """InputError for a field `kind` doesn't have, or a required one that is missing."""
    allowed = {field.name: field for field in fields(kind)}
    for option in options:
        if option not in allowed:
            listed = f"allowed are {', '.join(allowed)}" if allowed else "it takes none"
            raise InputError(f"{what} has no option {option!r}; {listed}: leave it out or correct its name.")
        value = options[option]
        if any(
            isinstance(one, int) and one.bit_length() > 63 for one in (value if isinstance(value, list) else [value])
        ):
            raise InputError(f"{what} was given a number for {option} that is beyond all bounds; give a smaller one.")
    for option, field in allowed.items():
        if field.default is MISSING and option not in options:
            raise InputError(f"{what} lacks {option!r}; it needs a value: add it.")
