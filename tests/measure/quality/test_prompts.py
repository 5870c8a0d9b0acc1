"""Prompt files: what counts as a prompt, and one sentence for what is no prompt file."""

from __future__ import annotations

from pathlib import Path

import pytest

from accelaes_export.errors import InputError
from accelaes_export.measure.quality.prompts import LONGEST, read_prompts


def test_comments_empty_lines_and_space_around_count_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("# colours\n\n  a red star \r\n#a blue ring\na green cross # not a comment\n", encoding="utf-8")
    assert read_prompts(path) == ("a red star", "a green cross # not a comment")


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffein roter Stern, très détaillé\n".encode())
    assert read_prompts(path) == ("ein roter Stern, très détaillé",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no prompt in it"),
        (b"# nothing\n\n", "has no prompt in it"),
        ("à la carte".encode("latin-1"), "is not UTF-8 text (byte 0)"),
        ("a star".encode("utf-16"), "is not UTF-8 text (byte 0)"),
        (b"a star\na ring\n a star\n", "Lines 1 and 3"),
        (b"ok\n" + b"x" * (LONGEST + 1), f"Line 2 of {{}} has {LONGEST + 1} characters; allowed are {LONGEST}"),
        (b"a\x00star\n", "can't be printed"),
    ],
)
def test_what_is_no_prompt_file_is_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="^[^\n]*$") as caught:
        read_prompts(path)
    assert said.format(path) in str(caught.value)


def test_a_file_that_is_not_there_or_a_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(InputError, match="is a folder"):
        read_prompts(tmp_path)
