"""Manifests of older schemas, as they would be written now."""

from __future__ import annotations

from typing import Any


def upgraded(manifest: dict[str, Any]) -> dict[str, Any]:
    """`manifest`, read from JSON, in the present schema. Schemas after 1 only added fields, which have defaults."""
    if manifest["schema_version"] != 1 or "call" in manifest:
        return manifest
    # Schema 1 knew one family, SD3, whose pipelines guide by pairs, and said the rest of the call at its top.
    rest = {name: value for name, value in manifest.items() if name not in ("pipelines", "signature")}
    call = {name: manifest[name] for name in ("pipelines", "signature") if name in manifest}
    return {**rest, "call": {**call, "guidance": {"layout": "uncond_cond"}}, "recipe": _recipe(manifest)}


def _recipe(manifest: dict[str, Any]) -> Any:
    """The recipe with what its text segments have been asked for since, as nobody asked for it then."""
    recipe = manifest.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("text"), list):
        return recipe  # damaged, which is said later
    since = {"template": "{}", "drop": 0}
    return recipe | {"text": [since | one if isinstance(one, dict) else one for one in recipe["text"]]}
