"""A plan as a coloured line of symbols, ten steps a group, with a legend. Readable without colour, too."""

from __future__ import annotations

from rich.text import Text

from accelaes_export.policies.plan import Plan, StepKind

_GROUP = 10
_GROUPS_A_LINE = 5
_STYLES = {
    StepKind.DENSE: "bold blue",
    StepKind.PARTIAL: "magenta",
    StepKind.LAYERED: "cyan",
    StepKind.SPARSE: "green",
    StepKind.SKIP: "dim",
}


def timeline(plan: Plan) -> Text:
    """The plan in lines of fifty steps, each with its first step's number, then the legend and the cost."""
    text = Text()
    for first in range(0, len(plan), _GROUP * _GROUPS_A_LINE):
        text.append(f"{first:>5} ", "dim")
        for start in range(first, min(first + _GROUP * _GROUPS_A_LINE, len(plan)), _GROUP):
            for i in range(start, min(start + _GROUP, len(plan))):
                text.append(plan.symbols[i], _STYLES[plan[i].kind])
            text.append(" ")
        text.rstrip()
        text.append("\n")
    text.append("      ")
    text.append_text(_legend(plan))
    share = plan.cost / len(plan)
    text.append(f"\n      cost {plan.cost:g} of {len(plan)} dense steps ({share:.0%} of the token-steps)")
    return text


def _legend(plan: Plan) -> Text:
    """Every symbol that occurs, what it means and how often it does."""
    entries = [("D", "dense", StepKind.DENSE)]
    entries += [(digit, f"{share:.3g} of the blocks", StepKind.PARTIAL) for digit, share in plan.digits.items()]
    entries += [(letter, f"sparse n/N = {fraction:g}", StepKind.SPARSE) for letter, fraction in plan.letters.items()]
    entries += [("*", "each part its own share", StepKind.LAYERED), (".", "skip", StepKind.SKIP)]
    legend = Text()
    for symbol, meaning, kind in entries:
        count = plan.symbols.count(symbol)
        if count:
            legend.append("   " if legend.plain else "")
            legend.append(symbol, _STYLES[kind])
            legend.append(f" {meaning} ×{count}")
    return legend
