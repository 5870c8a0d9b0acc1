"""Prompt files: one prompt a line, '#' begins a comment line, empty lines count for nothing."""

from __future__ import annotations

from pathlib import Path

from accelaes_export.errors import InputError
from accelaes_export.files.reading import read_given

LONGEST = 4000
"""Characters of a prompt. Text windows hold far less; a longer line is no prompt but some other file's."""


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts of a UTF-8 file, in order, without the space around them.

    Raises:
        InputError: no file, not UTF-8, no prompt in it, one given twice or longer than LONGEST characters.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a text file with one prompt a line.")
    try:
        text = read_given(path, regular=False).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a text file with one prompt a line.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}; give a text file with one prompt a line.") from None
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        prompt = line.strip()
        if not prompt or prompt.startswith("#"):
            continue
        if len(prompt) > LONGEST:
            raise InputError(
                f"Line {number} of {path} has {len(prompt)} characters; allowed are {LONGEST}: give one prompt a line."
            )
        if not prompt.isprintable():
            raise InputError(f"Line {number} of {path} has characters that can't be printed; give one prompt a line.")
        if prompt in found:
            raise InputError(
                f"Lines {found[prompt]} and {number} of {path} are the same prompt; give every prompt once, and "
                "several seeds where more pictures of it are wanted."
            )
        found[prompt] = number
    if not found:
        raise InputError(f"{path} has no prompt in it; write one a line.")
    return tuple(found)
