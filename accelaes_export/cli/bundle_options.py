"""Options that several verbs have: the bundle, whose are trusted, and with what; how many steps are compared."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

STEPS = (
    "Denoising steps T, but of policies whose length is their own option. [default: what a policy was made for, or the "
    "bundle's]"
)


class LateHelp(click.Option):
    """An option whose help is made when it is shown: it lists names whose home takes long to import."""

    def __init__(self, *names: Any, late_help: Callable[[], str], **options: Any) -> None:
        super().__init__(*names, **options)
        self._late_help = late_help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        self.help = self._late_help()
        return super().get_help_record(ctx)


_Command = TypeVar("_Command", bound=Callable[..., Any])


def runs_bundle(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --cuda-graphs and what `trust_options` adds to a verb with an argument `bundle`, which it gets opened."""

    @functools.wraps(command)
    def opening(bundle: Path, *, cuda_graphs: bool, trust: tuple[str, ...], allow_code: bool, **others: Any) -> None:
        from accelaes_export.bundle.reading import open_bundle

        command(open_bundle(bundle, cuda_graphs=cuda_graphs, trust=trust, allow_code=allow_code), **others)

    graphs = click.option(
        "--cuda-graphs/--no-cuda-graphs", default=True, help="On GPUs, replay engine calls. [default: on]"
    )
    return graphs(trust_options(opening))


def trust_options(command: _Command) -> _Command:
    """Adds --trust and --allow-code, the arguments `trust` and `allow_code` of `open_bundle`."""
    command = click.option(
        "--allow-code",
        is_flag=True,
        help="Run a bundle of native code (aoti) that was neither built here by you nor signed by a key you trust.",
    )(command)
    return click.option(
        "--trust",
        multiple=True,
        metavar="KEY",
        help="Only a bundle signed with this public key: a PEM file, or 64 hex digits. May be given several times.",
    )(command)
