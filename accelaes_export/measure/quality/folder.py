"""An evaluation's folder: pictures and rows appear in it one by one, and a later start finds what is done.

    evaluation.json      what is evaluated: bundle, prompts, policies, seeds, metrics
    pictures.jsonl       a row for every picture, in the order they were made
    pictures/K-LABEL/    prompt and seed in the file's name
    summary.json         once all are done

A row is written after its picture; what a crash leaves half-written is made again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from accelaes_export.errors import InputError
from accelaes_export.files.reading import parse_json, read_given
from accelaes_export.files.writing import append_line, whole_file, write_whole
from accelaes_export.measure.quality.report import ImageRow

if TYPE_CHECKING:
    from PIL.Image import Image

REQUEST, ROWS, PICTURES, SUMMARY = "evaluation.json", "pictures.jsonl", "pictures", "summary.json"
_OURS = (REQUEST, ROWS, PICTURES, SUMMARY)


class EvaluationFolder:
    """One evaluation on disk.

    Attributes:
        rows: what is done, by (label, prompt index, seed).
        attempt: how often it had been started before.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        """Nothing is read or written yet. With `force`, what an earlier evaluation left here is removed by `start`."""
        self.path = path
        self.rows: dict[tuple[str, int, int], ImageRow] = {}
        self.attempt = 0
        self._force = force

    def check(self, wanted: Mapping[str, Any]) -> None:
        """InputError unless the folder can be written and is new, empty or of the same evaluation.

        Args:
            wanted: what is to be evaluated, by topic. Topics may be left out; the others must be as they were.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; give a folder for the pictures with -o.")
        ancestor = next(parent for parent in (self.path.absolute(), *self.path.absolute().parents) if parent.exists())
        if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
            raise InputError(f"{self.path} can't be written: {ancestor} is no folder one may write to; give another.")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        if not (self.path / REQUEST).is_file():
            raise InputError(f"{self.path} holds files that are no evaluation's; give an empty or new folder with -o.")
        if self._force:
            return
        found = self._request()
        for topic, value in wanted.items():
            if found.get(topic) != json.loads(json.dumps(value)):
                raise InputError(
                    f"{self.path} holds an evaluation with {_difference(topic, found.get(topic), value)}; give the "
                    "same to go on with it, another folder with -o, or --force to begin anew."
                )

    def start(self, wanted: Mapping[str, Any]) -> None:
        """Begin, or go on, with `wanted`, all topics, as `check` allows. Rows without their picture are dropped."""
        self.check(wanted)
        if self._force:
            for name in _OURS:
                path = self.path / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        going_on = (self.path / REQUEST).is_file()
        self.attempt = self._request()["started"] if going_on else 0
        self.rows = {row.key: row for row in read_rows(self.path) if (self.path / row.file).is_file()}
        write_whole(self.path / REQUEST, json.dumps({**wanted, "started": self.attempt + 1}, indent=1) + "\n")
        # What was half-written or has lost its picture is left out for good.
        write_whole(self.path / ROWS, "".join(row.model_dump_json() + "\n" for row in self.rows.values()))

    def add(self, row: ImageRow, frames: Sequence[Image]) -> None:
        """Write a picture, then its row, to disk."""
        path = self.path / row.file
        with whole_file(path) as file:  # of a video an animated PNG: pixels come back as they were
            frames[0].save(file, format="PNG", save_all=len(frames) > 1, append_images=list(frames[1:]))
        append_line(self.path / ROWS, row.model_dump_json())
        self.rows[row.key] = row

    def frames(self, row: ImageRow) -> tuple[Image, ...]:
        """A picture that was added, as it was."""
        from PIL import Image as Pillow
        from PIL import ImageSequence

        with Pillow.open(self.path / row.file) as picture:
            return tuple(frame.convert("RGB") for frame in ImageSequence.Iterator(picture))

    def _request(self) -> dict[str, Any]:
        path = self.path / REQUEST
        try:
            found = parse_json(read_given(path))
            if not isinstance(found["started"], int):
                raise TypeError("started is no number")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} can't be read ({error}); give another folder with -o, or --force.") from error
        return dict(found)


def image_name(position: int, label: str, prompt_index: int, seed: int) -> str:
    """Where a picture lies in the folder; `position` of the policy tells labels apart that look alike as names."""
    slug = re.sub(r"[^A-Za-z0-9.=-]+", "_", label)[:60]
    return f"{PICTURES}/{position}-{slug}/{prompt_index:05d}-seed{seed}.png"


def read_rows(folder: Path) -> Iterator[ImageRow]:
    """The rows of an evaluation's folder; a last line that was cut off is left out.

    Raises:
        InputError: another line that is no row.
    """
    path = folder / ROWS
    if not path.is_file():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline isn't whole
        try:
            row = ImageRow.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]["msg"]
            raise InputError(
                f"Line {number} of {path} is no picture's row ({first}); give another folder with -o, or --force."
            ) from error
        if not row.file.startswith(f"{PICTURES}/") or ".." in Path(row.file).parts:
            raise InputError(f"Line {number} of {path} names the file {row.file!r} outside the folder; use --force.")
        yield row


def _difference(topic: str, found: Any, wanted: Any) -> str:
    """One topic of two evaluations, as far as a person wants to read it."""
    if topic == "prompts":
        return "other prompts"
    if topic == "build_key":
        return "another build of the bundle"
    if topic == "policies" and isinstance(found, list):
        labels = [", ".join(policy["label"] for policy in policies) for policies in (found, wanted)]
        return f"the policies {labels[0]}, not {labels[1]}" if labels[0] != labels[1] else "other options of policies"
    shown = [", ".join(map(str, v)) if isinstance(v, list) else str(v) for v in (found, wanted)]
    return f"{topic} {shown[0]}, not {shown[1]}"
