"""What a tuning holds, to be printed."""

from __future__ import annotations

from rich.table import Table

from accelaes_export.contract.tuning import Tuning
from accelaes_export.policies import Plan


def tuned(tuning: Tuning) -> Table:
    """Every plan with how far held-out pictures end from the teacher's, by hand and fitted."""
    table = Table(
        *("budget", "plan", "cost", "classes", "by hand (worst)", "fitted (worst)", "ratio"),
        title=f"Distance of {tuning.held_out} held-out pictures to {tuning.teacher_steps} dense steps",
        title_justify="left",
    )
    for budget, plan in tuning.plans.items():
        schedule, measured = plan.schedule, plan.measured
        coefficients = schedule.coefficients
        table.add_row(
            f"{budget:g}",
            schedule.symbols,
            f"{Plan(schedule.symbols, tuning.buckets).cost:g}",
            str(sum(map(len, coefficients.steps)) if coefficients else 0),
            f"{measured.before:.4g} ({measured.worst_before:.4g})",
            f"{measured.after:.4g} ({measured.worst_after:.4g})",
            f"{measured.after / measured.before:.2f}" if measured.before else "-",
        )
    table.caption = "root mean square of the latents' differences at the end of the run"
    table.caption_justify = "left"
    return table
