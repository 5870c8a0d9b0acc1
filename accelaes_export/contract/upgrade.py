"""Manifests of older schemas, as they would be written now."""

from __future__ import annotations

from typing import Any


def upgraded(manifest: dict[str, Any]) -> dict[str, Any]:
    """`manifest`, read from JSON, in the present schema. What schemas 2 to 4 and 6 to 12 added has defaults."""
    version = manifest["schema_version"]
    if version == 1 and "call" not in manifest:
        manifest = _with_call(manifest)
    if version < 11:
        manifest = _with_plans(manifest)
    return _with_geometries(manifest) if version < 5 and "geometries" not in manifest else manifest


def _with_geometries(manifest: dict[str, Any]) -> dict[str, Any]:
    """Schema 5: what depends on a picture's size stands in one place, of which there can be several."""
    of_a_size = ("latents", "contract", "bucket_flops", "without", "parity")
    rest = {name: value for name, value in manifest.items() if name not in of_a_size}
    geometry = {name: manifest[name] for name in of_a_size if name in manifest}
    call = manifest.get("call")
    if isinstance(call, dict) and "fixed" in call:
        geometry["fixed"] = call["fixed"]
        rest["call"] = {name: value for name, value in call.items() if name != "fixed"}
    return {**rest, "geometries": [geometry]}


def _with_call(manifest: dict[str, Any]) -> dict[str, Any]:
    """Schema 2. The first knew one family, SD3, whose pipelines guide by pairs, and said the rest of it at its top."""
    rest = {name: value for name, value in manifest.items() if name not in ("pipelines", "signature")}
    call = {name: manifest[name] for name in ("pipelines", "signature") if name in manifest}
    return {**rest, "call": {**call, "guidance": {"layout": "uncond_cond"}}, "recipe": _recipe(manifest)}


def _with_plans(manifest: dict[str, Any]) -> dict[str, Any]:
    """Schemas 10 and 11: plans that were asked for can have coefficients and a quality, which those had not."""
    recipe = manifest.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("plans"), dict):
        return manifest
    since = {"coefficients": None, "quality": None}
    plans = {budget: since | one if isinstance(one, dict) else one for budget, one in recipe["plans"].items()}
    return {**manifest, "recipe": recipe | {"plans": plans}}


def _recipe(manifest: dict[str, Any]) -> Any:
    """The recipe with what its text segments have been asked for since, as nobody asked for it then."""
    recipe = manifest.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("text"), list):
        return recipe  # damaged, which is said later
    since = {"template": "{}", "drop": 0}
    return recipe | {"text": [since | one if isinstance(one, dict) else one for one in recipe["text"]]}
