"""The aesthetic anchors A of Eq. 3: appendix A.1's 34 phrases in six groups. A recipe or bundle may bring its own."""

from __future__ import annotations

ANCHOR_GROUPS: dict[str, tuple[str, ...]] = {
    "style": (
        "photorealistic",
        "realistic",
        "cinematic",
        "highly detailed",
        "artistic",
        "masterpiece",
        "professional photography",
        "soft bokeh",
        "bokeh",
        "dramatic lighting",
        "fantasy art",
        "studio lighting",
    ),
    "detail": ("detailed", "intricate", "sharp focus", "sharp"),
    "judgment": ("stunning", "beautiful", "elegant", "vivid", "vibrant"),
    "photography": ("depth of field", "volumetric lighting", "close up", "portrait", "full body"),
    "emphasis": ("main subject", "foreground", "focused"),
    "content": ("subject", "character", "object", "figure", "person"),
}

ANCHORS: tuple[str, ...] = tuple(anchor for group in ANCHOR_GROUPS.values() for anchor in group)
