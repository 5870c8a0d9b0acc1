"""Whose weights run: the pipeline's own, or others that the bundle was built from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, get_args

from accelaes_export.bundle.reading import Bundle
from accelaes_export.contract.fingerprint import differing, read_fingerprint
from accelaes_export.contract.manifest import Source
from accelaes_export.errors import InputError
from accelaes_export.recipes import SHIPPED, shipped_folder
from accelaes_export.runtime.callers import unwrapped

WeightComparison = Literal["sample", "all", "bundle"]

logger = logging.getLogger("accelaes_export")


def which_weights(pipe: Any, bundle: Bundle, compared: WeightComparison) -> str:
    """A sentence for the report: which weights run, and how that is known. Warns where it isn't.

    Raises:
        InputError: the pipeline's transformer has other weights than the bundle, or `compared` isn't allowed.
    """
    if compared not in (allowed := get_args(WeightComparison)):
        raise InputError(f"weights is {compared!r}; allowed are {', '.join(map(repr, allowed))}: give one of them.")
    source = bundle.manifest.source
    if compared == "bundle":
        return f"the bundle's, from {source.location}, as asked for"
    if pipe.transformer is None:
        return _by_source(pipe, source)
    fingerprint = read_fingerprint(bundle.path)
    if fingerprint is None:
        return _unknown(source, "the bundle is from a release that recorded no weights")
    other = differing(unwrapped(pipe.transformer), fingerprint, whole=compared == "all")
    if other is None:
        return _unknown(source, "the pipeline's are quantised or elsewhere, and can't be compared")
    if other:
        raise InputError(
            f"The pipeline's transformer has other weights than bundle {bundle.path} ({len(other)} of "
            f"{len(fingerprint.tensors)} tensors differ, such as {other[0]}), as after a fine-tune or a fused LoRA; "
            'save the pipeline and build a bundle from it, or give weights="bundle" to run the bundle\'s.'
        )
    return (
        f"the pipeline's own, which the bundle was built from ({'all' if compared == 'all' else 'a sample'} compared)"
    )


def _by_source(pipe: Any, source: Source) -> str:
    """Of a pipeline that was loaded without a transformer: by where it was loaded from."""
    loaded = str(getattr(pipe, "name_or_path", None) or "")
    if loaded and _place(loaded) == _place(source.location):
        return f"the bundle's, from {source.location}, as the rest of the pipeline"
    where = f"the pipeline was loaded from {loaded}" if loaded else "nobody knows where the pipeline was loaded from"
    return _unknown(source, f"the pipeline has no transformer to compare, and {where}")


def _unknown(source: Source, reason: str) -> str:
    sentence = f"the bundle's, from {source.location}; {reason}"
    logger.warning("Weights that run are %s.", sentence)
    return sentence


def _place(location: str) -> str:
    """A folder by its real path, a hub's id as it is."""
    folder = shipped_folder(location) if location.startswith(SHIPPED) else Path(location)
    return str(folder.resolve()) if folder.is_dir() else location
