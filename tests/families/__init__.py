"""Every family at a size a test can afford; one file each says what is special about it."""

from __future__ import annotations

from tests.families import dit, flux, ltx, lumina, pixart, qwen_image, sd3, wan
from tests.families.tiny import Family

_MODULES = (sd3, flux, wan, lumina, pixart, dit, qwen_image, ltx)
FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in _MODULES}


def cases() -> list[tuple[str, str]]:
    """(family, variant) of every family."""
    return [(family.name, variant) for family in FAMILIES.values() for variant in family.variants]
