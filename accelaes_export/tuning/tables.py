"""What a tuning holds, to be printed."""

from __future__ import annotations

from rich.table import Table

from accelaes_export.contract.tuning import Tuning
from accelaes_export.policies import Plan
from accelaes_export.policies.plan_quality import bracketed


def tuned(tuning: Tuning) -> Table:
    """Every plan with how far held-out pictures end from the teacher's: by hand, and tuned."""
    table = Table(
        *("budget", "plan", "cost", "by hand (worst)", "tuned (worst)", "ratio", "PSNR", "as dense steps"),
        title=(
            f"Distance of {tuning.held_out} held-out picture{'s' if tuning.held_out > 1 else ''} to "
            f"{tuning.teacher_steps} dense steps"
        ),
        title_justify="left",
    )
    for budget, plan in tuning.plans.items():
        schedule, measured = plan.schedule, plan.measured
        quality = schedule.quality
        table.add_row(
            f"{budget:g}",
            schedule.symbols,
            f"{Plan(schedule.symbols, tuning.buckets).cost:g}",
            f"{measured.before:.4g} ({measured.worst_before:.4g})",
            f"{measured.after:.4g} ({measured.worst_after:.4g})",
            f"{measured.after / measured.before:.2f}" if measured.before else "-",
            *(("-", "-") if quality is None else (bracketed(quality.psnr), bracketed(quality.dense_steps))),
        )
    table.caption = (
        "distances: root mean square of the latents' differences at the end of the run; PSNR of the pictures in dB, "
        "and how many plain dense steps have as much, 95 % intervals in brackets"
    )
    table.caption_justify = "left"
    return table
