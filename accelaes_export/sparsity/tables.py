"""What a learned schedule is, as tables to print."""

from __future__ import annotations

from rich.table import Table

from accelaes_export.contract.schedules import ScheduleFile
from accelaes_export.policies.layer_schedule import LayerSchedule


def measured(found: ScheduleFile) -> Table:
    """How far held-out pictures are from dense ones, beside the same share in every part."""
    table = Table("schedule", "share", "mean", "worst")
    for name, own in ((found.method, found.measured), ("uniform", found.uniform)):
        if own is not None and (name != "uniform" or found.method != "uniform"):
            share = found.schedule.share if name == found.method else found.budget
            table.add_row(name, f"{share:.3f}", f"{own.mean:.4f}", f"{own.worst:.4f}")
    return table


def heading(found: ScheduleFile) -> str:
    """What those distances are."""
    return (
        f"Distance ({found.distance}) of {found.held_out} other picture{'s' if found.held_out > 1 else ''} to "
        f"{found.schedule.steps} dense steps"
    )


def by_kind(schedule: LayerSchedule) -> Table:
    """The mean share of the parts of one name at every step, in tenths."""
    names = list(dict.fromkeys(part.partition(".")[2] for part in schedule.parts))
    table = Table("parts", "share", "by step, in tenths")
    for name in names:
        own = [k for k, part in enumerate(schedule.parts) if part.partition(".")[2] == name]
        steps = [sum(row[k] for k in own) / len(own) for row in schedule.keep]
        tenths = "".join("+" if step > 0.95 else str(round(10 * step)) for step in steps)
        table.add_row(name, f"{sum(steps) / len(steps):.2f}", tenths)
    return table
