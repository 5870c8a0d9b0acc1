"""Tokenizers for runtimes without transformers: each as one file, which cuts and pads as the pipeline does."""

from __future__ import annotations

from pathlib import Path

from accelaes_export.errors import InputError, MissingComponentError, first_line
from accelaes_export.runtime.text import fast_form


def portable_form(folder: Path, kind: str, length: int, padded_to: int | None) -> str | None:
    """A tokenizer as the tokenizers library writes it: JSON that needs nothing beside it.

    Args:
        folder: its files.
        kind: transformers' class.
        length: ids of a text, at most; longer ones are cut.
        padded_to: texts are padded to a multiple of so many ids; None: to `length`.

    Returns:
        None for a tokenizer that has no such form.

    Raises:
        InputError: for files that can't be read as a tokenizer of that class.
    """
    import transformers
    from tokenizers import Tokenizer

    found = getattr(transformers, kind, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase)):
        raise InputError(
            f"{folder} is a {kind}, which is no tokenizer of transformers {transformers.__version__}; leave tokenizers "
            "out of --components."
        )
    try:
        fast = fast_form(found.from_pretrained(str(folder), local_files_only=True), str(folder))
    except MissingComponentError:
        return None
    except Exception as error:  # whatever a tokenizer makes of its files
        raise InputError(
            f"The tokenizer {folder} can't be read: {first_line(error)}; download the checkpoint again."
        ) from error
    alone = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    alone.enable_truncation(max_length=length, direction=fast.truncation_side)
    if fast.pad_token is None:
        alone.no_padding()
    else:
        alone.enable_padding(
            direction=fast.padding_side,
            pad_id=fast.pad_token_id,
            pad_token=fast.pad_token,
            length=length if padded_to is None else None,
            pad_to_multiple_of=padded_to,
        )
    text: str = alone.to_str()
    return text
