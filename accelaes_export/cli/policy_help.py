"""The policies and their options as `run --help` shows them, from what the policies say of themselves."""

from __future__ import annotations

from textwrap import fill

import click

from accelaes_export.policies import help_of, names

_WIDTH = 78


class PoliciesBelow(click.Command):
    """A command whose help ends with the policies, which are put into words when it is shown."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.epilog = policies_help()
        super().format_epilog(ctx, formatter)


def policies_help() -> str:
    """Every policy in a line or two, and its options with their defaults; \\b keeps click from joining lines."""
    blocks = ["\b\nPolicies, and their options for --policy-option NAME=VALUE:"]
    for name in names():
        policy = help_of(name)
        options = ", ".join(f"{option.name}={option.default}".rstrip("=") for option in policy.options)
        lines = [_indented(f"{name:<12} {policy.summary}", 13)]
        if options:
            lines.append(_indented(f"{'':<12} {options}", 13))
        blocks.append("\b\n" + "\n".join(lines))
    return "\n\n".join(blocks)


def _indented(text: str, width: int) -> str:
    return fill(text, _WIDTH, subsequent_indent=" " * width, drop_whitespace=True, break_on_hyphens=False)
