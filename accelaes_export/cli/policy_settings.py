"""Options of `run` that say how its policy is set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from accelaes_export.errors import InputError

_OPTIONS = (
    click.option(
        "--skip-ratio", type=float, metavar="P", help="Share of image tokens a sparse step leaves out: bucket 1 - p."
    ),
    click.option(
        "--mask-step", type=int, metavar="I", help="The mask is built after this step; it and all before are dense."
    ),
    click.option("--warmup", type=int, metavar="STEPS", help="Dense steps before the first skip."),
    click.option(
        "--interval", type=int, metavar="K", help="After that one step in K is computed, the others extrapolated."
    ),
    click.option(
        "--refresh-every", type=int, metavar="K", help="Every K-th computed step after the mask is dense; 0: none is."
    ),
    click.option(
        "--budget",
        type=float,
        metavar="COST",
        help="Token-steps to spend, in dense steps (drift and fewer-steps); inspect lists drift's plans.",
    ),
    click.option(
        "--plan", metavar="SYMBOLS", help="Any policy's plan by hand: D, '.' or a bucket letter for every step."
    ),
    click.option(
        "--policy-option", "policy_options", multiple=True, metavar="NAME=VALUE", help="Any other option of the policy."
    ),
)
_NAMES = ("skip_ratio", "mask_step", "warmup", "interval", "refresh_every", "budget", "plan")


def policy_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds them, and hands over those that were given as one dictionary, `settings`, by the policy's own names.

    One that isn't given is not in it; `--policy-option NAME=none` is.
    """

    @functools.wraps(command)
    def gathering(policy_options: tuple[str, ...], **others: Any) -> None:
        from accelaes_export.cli.policy_options import parsed_options

        named = {name: others.pop(name) for name in _NAMES}
        settings = {name: value for name, value in named.items() if value is not None}
        more = parsed_options(policy_options)
        twice = sorted(set(settings) & set(more))
        if twice:
            raise InputError(f"Policy option {twice[0]} is given twice; give it once.")
        command(settings=settings | more, **others)

    for option in reversed(_OPTIONS):
        command = option(command)
    return gathering
