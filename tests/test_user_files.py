"""Files are written whole or not at all, and nowhere else than asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from accelaes_export.errors import InputError
from accelaes_export.user_files import check_writable, write_whole


def test_a_file_is_written_into_new_folders_and_replaced_at_once(tmp_path: Path) -> None:
    target = tmp_path / "a/b/profile.json"
    write_whole(target, "first")
    write_whole(target, "second")
    assert target.read_text() == "second"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    target = tmp_path / "profile.json"
    write_whole(target, "before")

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(failure)):
        write_whole(target, "after")
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_destination_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match="can't be written"):
        check_writable(tmp_path / "file/profile.json")
    check_writable(tmp_path / "new/profile.json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
