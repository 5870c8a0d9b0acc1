"""Writing bundles: a folder holds the old bundle or the new one, whole, whatever stops the build."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from accelaes_export.bundle import writing as bundle_writing
from accelaes_export.bundle.reading import Bundle, open_bundle
from accelaes_export.bundle.writing import build_lock, check_destination, write_bundle
from accelaes_export.errors import BuildError, InputError
from accelaes_export.files import replacing
from tests.fake_bundle import ENGINE, fake_geometry, fake_manifest, write_fake_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_fake_bundle(tmp_path / "bundle")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestWriting:
    def test_links_its_sources_instead_of_copying(self, tmp_path: Path) -> None:
        source = tmp_path / "engine"
        source.write_bytes(ENGINE)
        written = write_bundle(tmp_path / "b", fake_manifest(), {"engine.onnx": source})
        assert (written.path / "engine.onnx").stat().st_ino == source.stat().st_ino

    def test_copies_where_links_cannot_be(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Path, target: Path) -> None:
            raise OSError(errno.EXDEV, "another device")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        assert open_bundle(write_fake_bundle(tmp_path / "b").path).manifest.files

    def test_leaves_nothing_but_the_bundle(self, bundle: Bundle) -> None:
        assert names(bundle.path.parent) == {"bundle"}

    def test_fills_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        open_bundle(write_fake_bundle(tmp_path / "b").path)

    def test_replaces_a_bundle_of_the_same_build(self, bundle: Bundle) -> None:
        write_fake_bundle(bundle.path, engine=b"new")
        assert (open_bundle(bundle.path).path / "engine.onnx").read_bytes() == b"new"
        assert names(bundle.path.parent) == {"bundle"}

    def test_replaces_another_bundle_only_by_force(self, bundle: Bundle) -> None:
        with pytest.raises(InputError, match="another bundle.*--force"):
            write_fake_bundle(bundle.path, engine=b"new", build_key="k2")
        assert open_bundle(bundle.path).manifest == bundle.manifest
        write_fake_bundle(bundle.path, engine=b"new", build_key="k2", force=True)
        assert open_bundle(bundle.path).manifest.build_key == "k2"

    def test_replaces_a_damaged_bundle(self, bundle: Bundle) -> None:
        (bundle.path / "engine.onnx").unlink()
        write_fake_bundle(bundle.path)
        open_bundle(bundle.path)

    def test_leaves_a_folder_that_is_no_bundle_alone_even_by_force(self, tmp_path: Path) -> None:
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "manifest.json").write_text('{"name": "a web app"}')
        with pytest.raises(InputError, match="left alone"):
            write_fake_bundle(tmp_path / "thesis", force=True)
        assert names(tmp_path / "thesis") == {"manifest.json"}

    def test_leaves_files_that_are_not_the_bundles_alone_even_by_force(self, bundle: Bundle) -> None:
        (bundle.path / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match=r"notes\.txt"):
            write_fake_bundle(bundle.path, force=True)
        assert (bundle.path / "notes.txt").read_text() == "mine"

    def test_leaves_a_file_alone(self, tmp_path: Path) -> None:
        (tmp_path / "b").write_text("mine")
        with pytest.raises(InputError, match="is a file"):
            write_fake_bundle(tmp_path / "b", force=True)
        assert (tmp_path / "b").read_text() == "mine"

    def test_the_destination_can_be_checked_before_a_long_build(self, bundle: Bundle) -> None:
        assert check_destination(bundle.path.parent / "new") is None
        found = check_destination(bundle.path, bundle.manifest.build_key)
        assert found is not None and found.manifest == bundle.manifest
        with pytest.raises(InputError, match="--force"):
            check_destination(bundle.path, "another")

    def test_a_parent_that_is_a_file_is_bad_input(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        source = tmp_path / "engine"
        source.write_bytes(ENGINE)
        with pytest.raises(InputError, match="can't be"):
            write_bundle(tmp_path / "file" / "b", fake_manifest(), {"engine.onnx": source})

    @pytest.mark.parametrize("moment", ["sha256_of", "_write_text", "put_in_place"])
    @pytest.mark.parametrize("event", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
    def test_an_interruption_leaves_the_state_before(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, moment: str, event: BaseException
    ) -> None:
        def interrupted(*_: object) -> None:
            raise event

        monkeypatch.setattr(bundle_writing, moment, interrupted)
        with pytest.raises((KeyboardInterrupt, BuildError)) as caught:
            write_fake_bundle(bundle.path, engine=b"new", force=True)
        if isinstance(event, OSError):
            assert "The disk is full: the bundle needs 0.00 GB" in str(caught.value)
        shutil.rmtree(bundle.path.parent / "sources-bundle")
        assert names(bundle.path.parent) == {"bundle"}
        assert open_bundle(bundle.path).manifest == bundle.manifest

    def test_an_interruption_between_the_renames_puts_the_old_bundle_back(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rename = Path.rename

        def interrupted(self: Path, target: Path) -> Path:
            if ".writing-" in self.name:
                raise KeyboardInterrupt
            return rename(self, target)

        monkeypatch.setattr(replacing, "_exchange", lambda *_: False)
        monkeypatch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_fake_bundle(bundle.path, engine=b"new")
        assert open_bundle(bundle.path).manifest == bundle.manifest

    def test_at_no_moment_is_there_no_bundle(self, bundle: Bundle) -> None:
        looked, done = [], threading.Event()

        def look() -> None:
            while not done.is_set():
                looked.append((bundle.path / "manifest.json").exists())

        watcher = threading.Thread(target=look)
        watcher.start()
        for k in range(100):
            write_fake_bundle(bundle.path, engine=bytes([k]))
        done.set()
        watcher.join()
        assert len(looked) > 100 and all(looked)
        assert names(bundle.path.parent) == {"bundle"}

    def test_where_names_cannot_change_places_the_next_to_open_or_build_brings_the_old_bundle_back(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replacing, "_exchange", lambda *_: False)
        write_fake_bundle(bundle.path, engine=b"new")
        (bundle.path.parent / "new").mkdir()
        gone = subprocess.Popen(["true"])
        gone.wait()
        old = bundle.path.parent / f".bundle.old-{gone.pid}"
        for look in (open_bundle, lambda path: check_destination(path, "k1")):
            bundle.path.rename(old)  # where a build was killed
            assert look(bundle.path) is not None
            assert bundle.path.is_dir() and not old.exists()

    def test_a_replacement_that_is_going_on_is_left_alone(self, bundle: Bundle) -> None:
        with subprocess.Popen(["sleep", "60"]) as other:
            old = bundle.path.parent / f".bundle.old-{other.pid}"
            bundle.path.rename(old)
            with pytest.raises(InputError, match="does not exist"):
                open_bundle(bundle.path)
            assert old.is_dir()
            other.kill()

    def test_force_gets_out_of_a_folder_whose_manifest_cannot_be_read_and_loses_nothing(self, bundle: Bundle) -> None:
        for k, damage in enumerate(("{", '{"schema_version": 99}', "")):
            (bundle.path / "manifest.json").write_text(damage)
            with pytest.raises(InputError, match="move it away with --force"):
                write_fake_bundle(bundle.path)
            write_fake_bundle(bundle.path, force=True)
            assert open_bundle(bundle.path).manifest.files
            aside = bundle.path.with_name(f"bundle.unreadable{k or ''}")
            assert (aside / "manifest.json").read_text() == damage and (aside / "engine.onnx").exists()

    def test_what_was_written_can_be_read_or_nothing_is_written(self, bundle: Bundle) -> None:
        far = bundle.manifest.geometry.parity[0].model_copy(update={"max_abs": float("nan")})
        with pytest.raises(BuildError, match="could not be read again"):
            write_fake_bundle(bundle.path, geometries=(fake_geometry(parity=(far,)),))
        assert open_bundle(bundle.path).manifest == bundle.manifest


class TestBuildLock:
    def test_a_second_build_fails_at_once_and_names_the_first(self, tmp_path: Path) -> None:
        with build_lock(tmp_path / "b"):
            code = (
                f"from accelaes_export.bundle.writing import build_lock\nwith build_lock({str(tmp_path / 'b')!r}): pass"
            )
            second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"Another build (process {os.getpid()}) is writing" in second.stderr

    def test_is_let_go_afterwards_even_after_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), build_lock(tmp_path / "b"):
            raise ZeroDivisionError
        with build_lock(tmp_path / "b"):
            pass

    def test_two_folders_are_two_locks(self, tmp_path: Path) -> None:
        with build_lock(tmp_path / "a"), build_lock(tmp_path / "b"):
            pass

    def test_the_lock_file_of_a_killed_build_blocks_nobody(self, tmp_path: Path) -> None:
        (tmp_path / ".stages").mkdir()
        (tmp_path / ".stages/b.lock").write_text("1")
        with build_lock(tmp_path / "b"):
            pass

    def test_what_a_killed_build_left_is_cleared(self, bundle: Bundle) -> None:
        parent = bundle.path.parent
        (parent / ".bundle.writing-7").mkdir()
        bundle.path.rename(parent / ".bundle.old-7")  # killed between the two renames
        with build_lock(bundle.path):
            assert open_bundle(bundle.path).manifest == bundle.manifest
        assert names(parent) == {"bundle", ".stages"}

    def test_of_racing_processes_every_winner_writes_a_whole_bundle(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        with context.Pool(2) as pool:
            outcomes = pool.map(_build, [(str(tmp_path / "b"), worker) for worker in range(2)], chunksize=1)
        assert all(set(outcome) <= {"written", "refused"} for outcome in outcomes)
        assert "written" in outcomes[0] + outcomes[1]
        open_bundle(tmp_path / "b").check()
        assert names(tmp_path) == {"b", ".stages"}

    def test_on_a_mount_without_locks_builds_of_this_machine_keep_out_of_each_others_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flock = fcntl.flock

        def without(handle: int, operation: int) -> None:
            if str(tmp_path / "mount") in str(Path(f"/proc/self/fd/{handle}").readlink()):
                raise OSError(errno.ENOLCK, "No locks available")
            flock(handle, operation)

        monkeypatch.setattr(fcntl, "flock", without)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with build_lock(tmp_path / "mount/b"):
            with pytest.raises(BuildError, match="Another build"), build_lock(tmp_path / "mount/b"):
                pass
            with build_lock(tmp_path / "mount/c"):
                pass


def _build(given: tuple[str, int]) -> list[str]:
    folder, worker = given
    outcomes = []
    for attempt in range(30):
        with tempfile.TemporaryDirectory() as elsewhere:
            source = Path(elsewhere) / "engine"
            source.write_bytes(bytes([worker, attempt]) * 1000)
            try:
                with build_lock(folder):
                    write_bundle(folder, fake_manifest(), {"engine.onnx": source})
                outcomes.append("written")
            except BuildError:
                outcomes.append("refused")
    return outcomes
