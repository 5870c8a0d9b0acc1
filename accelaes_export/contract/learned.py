"""Reading a file of what was learned for a checkpoint: a tuning, a layer-wise schedule."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from accelaes_export.contract.records import Record
from accelaes_export.errors import InputError
from accelaes_export.files.reading import read_given

_Record = TypeVar("_Record", bound=Record)


def read_learned(path: Path, kind: type[_Record], what: str, version: int, made_by: str) -> _Record:
    """The record in the file at `path`.

    Args:
        what: it is called; its version is the field ``<what>_version``.
        version: the one this release reads.
        made_by: the command that writes such files.

    Raises:
        InputError: there is no such file, or it isn't one.
    """
    try:
        text = read_given(path, regular=False)
    except OSError as error:
        raise InputError(
            f"The {what} {path} can't be read: {error.strerror}; give a file that {made_by} wrote."
        ) from None
    try:
        found = kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        said = str(cause).rstrip(".") if isinstance(cause, InputError) else first["msg"]
        raise InputError(f"{path} is no {what}: {place}: {said}.") from error
    own = getattr(found, f"{what}_version")
    if own != version:
        raise InputError(
            f"{path} is a {what} of version {own}, and this release reads {version}: tune again with this release."
        )
    return found
