"""Files are written whole or not at all, and nowhere else than asked; those we are handed are read to an end."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from accelaes_export.errors import InputError, WriteError
from accelaes_export.files.reading import parse_json, read_given, require_plain_files
from accelaes_export.files.writing import check_writable, whole_file, write_whole


class TestWriting:
    def test_a_file_is_written_into_new_folders_and_replaced_at_once(self, tmp_path: Path) -> None:
        target = tmp_path / "a/b/profile.json"
        write_whole(target, "first")
        write_whole(target, "second")
        assert target.read_text() == "second"
        assert list(target.parent.iterdir()) == [target]

    @pytest.mark.parametrize("failure", [ZeroDivisionError(), KeyboardInterrupt()])
    def test_an_interrupted_write_leaves_what_was_there(self, tmp_path: Path, failure: BaseException) -> None:
        target = tmp_path / "profile.json"
        write_whole(target, "before")
        with pytest.raises(type(failure)), whole_file(target) as file:
            file.write(b"half")
            raise failure
        assert target.read_text() == "before"
        assert list(tmp_path.iterdir()) == [target]

    @pytest.mark.parametrize(
        ("code", "kind", "said"),
        [
            (errno.ENOSPC, WriteError, "the disk is full"),
            (errno.EDQUOT, WriteError, "the disk is full"),
            (errno.EFBIG, WriteError, r"ulimit -f"),
            (errno.EROFS, InputError, "Read-only file system"),
            (errno.EACCES, InputError, "Permission denied"),
        ],
    )
    def test_a_failure_names_the_file_and_the_reason(
        self, tmp_path: Path, code: int, kind: type[Exception], said: str
    ) -> None:
        target = tmp_path / "out.png"
        with pytest.raises(kind, match=f"out.png can't be written: .*{said}"), whole_file(target):
            raise OSError(code, os.strerror(code))
        assert list(tmp_path.iterdir()) == []

    def test_a_link_is_followed_and_stays(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "file")
        write_whole(tmp_path / "link", "text")
        assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "text"

    def test_it_is_readable_as_any_new_file(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        write_whole(tmp_path / "ours", "")
        assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_pipes_and_devices_are_written_to_as_they_are(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
        reader.start()
        while not found and reader.is_alive():
            try:
                write_whole(tmp_path / "pipe", "text")
            except InputError:  # the reader isn't there yet
                continue
            reader.join()
        assert found == ["text"] and (tmp_path / "pipe").is_fifo()
        write_whole(Path("/dev/null"), "text")
        with pytest.raises(WriteError, match="/dev/full can't be written: the disk is full"):
            write_whole(Path("/dev/full"), "text")


class TestAskingBefore:
    def test_what_cannot_be_written_is_named_and_nothing_touched(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        os.mkfifo(tmp_path / "pipe")
        for name, said in (
            (".", "is a folder; give the name of a file"),
            ("file/profile.json", "is no folder"),
            ("a" * 300, "File name too long"),
            ("new/" + "a" * 300, "File name too long"),
            ("pipe", "nobody reads this pipe"),
        ):
            with pytest.raises(InputError, match=said):
                check_writable(tmp_path / name)
        with pytest.raises(InputError, match="is no path of a file"):
            check_writable(Path("a\0b"))
        check_writable(tmp_path / "new/profile.json", None, tmp_path / "file", Path("/dev/null"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]
        assert (tmp_path / "file").read_text() == "mine"

    def test_two_files_at_one_place_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "out.png")
        for other in ("out.png", "./out.png", "link"):
            with pytest.raises(InputError, match="is to be written twice"):
                check_writable(tmp_path / "out.png", tmp_path / other)
        check_writable(Path("/dev/null"), Path("/dev/null"))


class TestReading:
    def test_a_regular_file_is_read_and_nothing_else_waited_for(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"text")
        assert read_given(tmp_path / "file") == b"text"
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
            with pytest.raises(OSError, match="not a regular file"):
                read_given(path)
        assert read_given(tmp_path / "pipe", regular=False) == b""
        with pytest.raises(OSError, match="more than 256 MB"):
            read_given(Path("/dev/zero"), regular=False)

    @pytest.mark.parametrize(
        "text", ['"\\ud800"', "NaN", "[Infinity]", "-Infinity", "[" * 10**5, "1" * 5000, "", "\ufeff1"]
    )
    def test_what_the_standard_does_not_have_is_no_json(self, text: str) -> None:
        with pytest.raises(ValueError):
            parse_json(text.encode())

    def test_json_is_read(self) -> None:
        assert parse_json('{"θ": [1, 0.5, null, "😀"]}'.encode()) == {"θ": [1, 0.5, None, "😀"]}

    def test_a_folder_with_a_pipe_in_it_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/file").touch()
        require_plain_files(tmp_path)
        (tmp_path / "a/link").symlink_to(tmp_path / "nowhere")
        with pytest.raises(InputError, match="a link to nothing"):
            require_plain_files(tmp_path)
        (tmp_path / "a/link").unlink()
        os.mkfifo(tmp_path / "a/pipe")
        with pytest.raises(InputError, match="pipe is not a regular file"):
            require_plain_files(tmp_path)
