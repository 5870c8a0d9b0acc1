"""How kernels are made: what a recipe asks for, and formats that generate kernels are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from accelaes_export.errors import InputError


@dataclass(frozen=True)
class CompileOptions:
    """How kernels are made, by formats that generate them.

    Attributes:
        autotune: try several kernels for every matrix product on the device and keep the fastest.
        freezing: let the compiler rearrange weights into its kernels' own layouts; they are then inside the engine.
            None: where it pays, which is on CPUs.
        per_bucket: one package for every bucket instead of one for all; they share their weights.

    Raises:
        InputError: for packages per bucket that are frozen.
    """

    autotune: bool = False
    freezing: bool | None = None
    per_bucket: bool = False

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # recipes hold them

    def __post_init__(self) -> None:
        if self.per_bucket and self.freezing:
            raise InputError(
                "Packages per bucket share their weights, and freezing puts them into every package; choose one."
            )
