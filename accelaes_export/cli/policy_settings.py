"""Options of `run` that say how its policy is set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from accelaes_export.errors import InputError
from accelaes_export.options import parse_policy_options

_SETTINGS: dict[str, dict[str, Any]] = {
    "skip_ratio": {
        "type": float,
        "metavar": "P",
        "help": "Share of image tokens a sparse step leaves out: bucket 1 - p.",
    },
    "mask_step": {
        "type": int,
        "metavar": "I",
        "help": "The mask is built after this step; it and all before are dense.",
    },
    "warmup": {"type": int, "metavar": "STEPS", "help": "Dense steps before the first skip."},
    "interval": {
        "type": int,
        "metavar": "K",
        "help": "After that one step in K is computed, the others extrapolated.",
    },
    "refresh_every": {
        "type": int,
        "metavar": "K",
        "help": "Every K-th computed step after the mask is dense; 0: none is.",
    },
    "budget": {
        "type": float,
        "metavar": "COST",
        "help": "Token-steps to spend, in dense steps (drift and fewer-steps); inspect lists drift's plans.",
    },
    "schedule": {
        "type": click.Path(dir_okay=False),
        "metavar": "FILE",
        "help": "Shares by step and part, from a file that tune --method diffsparse wrote (diffsparse).",
    },
    "plan": {
        "metavar": "SYMBOLS",
        "help": "Any policy's plan by hand: D, '.' or a bucket letter for every step.",
    },
}
"""Settings with an option of their own, by the policies' name for them."""


def policy_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds them, and hands over those that were given as one dictionary, `settings`, by the policy's own names.

    One that isn't given is not in it; `--policy-option NAME=none` is.
    """

    @functools.wraps(command)
    def gathering(policy_options: tuple[str, ...], **others: Any) -> None:
        named = {name: others.pop(name) for name in _SETTINGS}
        settings = {name: value for name, value in named.items() if value is not None}
        more = parse_policy_options(policy_options)
        twice = sorted(set(settings) & set(more))
        if twice:
            raise InputError(f"Policy option {twice[0]} is given twice; give it once.")
        command(settings=settings | more, **others)

    any_other = click.option(
        "--policy-option", "policy_options", multiple=True, metavar="NAME=VALUE", help="Any other option of the policy."
    )
    decorated = any_other(gathering)
    for name, described in reversed(_SETTINGS.items()):
        decorated = click.option(f"--{name.replace('_', '-')}", **described)(decorated)
    return decorated
