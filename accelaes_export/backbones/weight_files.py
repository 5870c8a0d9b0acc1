"""Which files of a checkpoint's folder hold its weights: one variant, in one file or in shards. safetensors only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from accelaes_export.errors import InputError
from accelaes_export.files.reading import parse_json, read_given

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
_LONGEST_NAME = 255  # of a file


def weight_files(folder: Path, stem: str, variant: str | None = None) -> tuple[str, tuple[Path, ...], tuple[str, ...]]:
    """The variant taken ("" for the plain one), its safetensors, shards by their index, and the other variants.

    Args:
        stem: of their names, `DIFFUSERS` or `TRANSFORMERS`.
        variant: such as fp16; None: the plain ones, or the only variant there is.

    Raises:
        InputError: no safetensors, no such variant, or several and none named.
    """
    found = _variants(folder, stem)
    if not found:
        pickled = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.ckpt")))
        hint = f"; {pickled[0]} is a pickle, which is never opened here: convert it to safetensors" if pickled else ""
        raise InputError(f"{folder} has no {stem}.safetensors{hint}.")
    named = ", ".join(name or "the plain one" for name in found)
    if variant is not None and variant not in found:
        raise InputError(f"{folder} has no variant {variant!r} of the weights; there are {named}.")
    if variant is None and "" not in found and len(found) > 1:
        raise InputError(f"{folder} has the weights in the variants {named}; say which with --variant.")
    taken = variant if variant is not None else "" if "" in found else next(iter(found))
    first, *second = found[taken]
    if second:
        raise InputError(
            f"{folder} has its weights twice, in {first.name} and by {second[0].name}, and one may be older; move the "
            "one that isn't meant away."
        )
    beside = tuple(name for name in found if name != taken)
    return taken, _shards(first) if first.suffix == ".json" else (first,), beside


def component_files(folder: Path, stem: str, variant: str | None) -> tuple[str, tuple[Path, ...]]:
    """The same of what stands beside a transformer of that variant: as diffusers, the plain files where it lacks it."""
    taken, files, _ = weight_files(folder, stem, variant if variant in _variants(folder, stem) else None)
    return taken, files


def _variants(folder: Path, stem: str) -> dict[str, list[Path]]:
    """Files or indices of a folder's weights by variant."""
    single = re.compile(rf"{stem}(?:\.(\w+))?\.safetensors")
    index = re.compile(rf"{stem}\.safetensors\.index(?:\.(\w+))?\.json")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        match = single.fullmatch(path.name) or index.fullmatch(path.name)
        if match is not None and path.is_file():
            found.setdefault(match.group(1) or "", []).append(path)
    return found


def stored_tensors(files: Iterable[Path]) -> dict[str, tuple[list[int], str]]:
    """Shape and element type of every tensor, from the files' headers; InputError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    found = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in list(tensors.keys()):
                    part = tensors.get_slice(name)
                    found[name] = list(part.get_shape()), part.get_dtype()
        except SafetensorError as error:
            raise InputError(f"{file} is damaged: {error}; download or copy it again.") from error
    return found


def _shards(index: Path) -> tuple[Path, ...]:
    """The files an index lists."""
    try:
        names = sorted(set(parse_json(read_given(index))["weight_map"].values()))
        files = tuple(index.parent / name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{index} is not a weight index: {error}.") from error
    strange = [name for name in names if Path(name).name != name or len(name) > _LONGEST_NAME]
    if strange or not names:
        raise InputError(
            f"{index} lists {strange[0][:80]!r}, which is no file beside it; download the checkpoint again."
            if strange
            else f"{index} lists no file; download the checkpoint again."
        )
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise InputError(f"{index.parent} lacks {missing[0]}, which {index.name} lists; download the checkpoint again.")
    return files
