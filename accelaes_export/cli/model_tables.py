"""What `accelaes-export models` prints: all models in a line each, or one in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from accelaes_export.cli.catalogue import Model


def overview(models: Sequence[Model]) -> Table:
    """A line a model."""
    table = Table(box=None, pad_edge=False)
    for head in ("model", "family", "size", "N", "M", "dtype", "T", "tested", "source"):
        table.add_column(head, no_wrap=head != "source", overflow="fold", justify="right" if len(head) == 1 else "left")
    for model in models:
        height, width = model.resolution
        figures = (str(model.tokens), str(model.text_tokens), model.dtype, str(model.steps))
        table.add_row(
            model.name, model.family, f"{height}x{width}", *figures, "yes" if model.tested else "no", model.source
        )
    return table


def details(model: Model) -> Table:
    """Everything about one."""
    height, width = model.resolution
    skips = ", ".join(f"{1 - bucket:g}" for bucket in reversed(model.buckets)) or "none"
    table = Table(title=model.name, title_style="bold", title_justify="left", box=None, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("title", model.title)
    table.add_row("family", model.family)
    table.add_row("source", model.source)
    table.add_row("image tokens", f"N = {model.tokens} at {height}x{width} (height x width)")
    table.add_row("text tokens", f"M = {model.text_tokens}")
    table.add_row("dtype", model.dtype)
    table.add_row("buckets", f"{', '.join(f'{b:g}' for b in model.buckets)}, 1 (dense): skip ratios {skips}")
    table.add_row("forms", ", ".join(model.forms))
    table.add_row("guidance", f"{model.guidance:g}")
    table.add_row("spatial CFG", "on by default" if model.spatial_cfg else "off by default")
    table.add_row("steps", f"T = {model.steps}")
    table.add_row("tested", "yes" if model.tested else "architecture only (random weights)")
    return table
