"""Opening, checking and writing bundles: whatever happens to the folder, one sentence and never half a bundle."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export import bundle_writing
from accelaes_export.bundle import Bundle, open_bundle
from accelaes_export.bundle_writing import build_lock, check_destination, write_bundle
from accelaes_export.errors import BuildError, BundleError, InputError
from accelaes_export.manifest import Manifest
from tests.fake_bundle import ENGINE, fake_manifest, write_fake_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_fake_bundle(tmp_path / "bundle")


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest on disk."""
    path = bundle.path / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestOpening:
    def test_gives_back_what_was_written(self, bundle: Bundle) -> None:
        opened = open_bundle(bundle.path)
        assert opened.manifest == bundle.manifest
        assert opened.manifest.files["engine.onnx"].size == len(ENGINE)
        opened.check()

    def test_a_missing_folder_is_bad_input(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="does not exist"):
            open_bundle(tmp_path / "nowhere")

    def test_a_file_is_bad_input(self, bundle: Bundle) -> None:
        with pytest.raises(InputError, match="is a file"):
            open_bundle(bundle.path / "engine.onnx")

    def test_a_folder_without_manifest_is_no_bundle(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="no manifest.json"):
            open_bundle(tmp_path)

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', "\ud800", "[" * 100_000, '{"schema_version": "1"}'])
    def test_a_manifest_that_is_none_is_refused(self, bundle: Bundle, text: str) -> None:
        (bundle.path / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(BundleError, match="manifest"):
            open_bundle(bundle.path)

    def test_a_newer_schema_asks_for_an_upgrade(self, bundle: Bundle) -> None:
        edit(bundle, lambda data: data.update(schema_version=2, created_by="accelaes-export 9.0", novelty=1))
        with pytest.raises(BundleError, match=r"accelaes-export 9\.0.*--upgrade"):
            open_bundle(bundle.path)

    def test_an_unknown_or_missing_field_is_named(self, bundle: Bundle) -> None:
        edit(bundle, lambda data: data.pop("family"))
        with pytest.raises(BundleError, match="family"):
            open_bundle(bundle.path)

    def test_a_missing_file_is_named(self, bundle: Bundle) -> None:
        (bundle.path / "engine.onnx").unlink()
        with pytest.raises(BundleError, match=r"lacks engine\.onnx"):
            open_bundle(bundle.path)

    def test_a_truncated_file_is_named_with_both_sizes_even_unhashed(self, bundle: Bundle) -> None:
        (bundle.path / "engine.onnx").write_bytes(ENGINE[:-1])
        with pytest.raises(BundleError, match=r"engine\.onnx is truncated: 767 bytes.*768"):
            open_bundle(bundle.path, check_hashes=False)

    def test_an_edited_file_is_named_with_both_hashes(self, bundle: Bundle) -> None:
        (bundle.path / "engine.onnx").write_bytes(b"x" + ENGINE[1:])
        with pytest.raises(BundleError, match=r"engine\.onnx was altered: its SHA-256 is \w{16}….*\w{16}…"):
            open_bundle(bundle.path)
        with pytest.raises(BundleError, match="was altered"):
            open_bundle(bundle.path, check_hashes=False).check()

    @pytest.mark.parametrize(
        "name", ["../outside", "/etc/hostname", "a/../../outside", "manifest.json", "", "a\\b", "\0"]
    )
    def test_a_path_that_leaves_the_folder_is_refused_unread(self, bundle: Bundle, name: str) -> None:
        edit(bundle, lambda data: data["files"].update({name: data["files"]["engine.onnx"]}))
        with pytest.raises(BundleError, match="outside the bundle"):
            open_bundle(bundle.path)

    def test_a_symbolic_link_is_refused_even_to_the_same_bytes(self, bundle: Bundle) -> None:
        (bundle.path / "engine.onnx").rename(bundle.path.parent / "engine.onnx")
        (bundle.path / "engine.onnx").symlink_to(bundle.path.parent / "engine.onnx")
        with pytest.raises(BundleError, match="symbolic link"):
            open_bundle(bundle.path)

    def test_a_symbolic_link_to_the_whole_bundle_is_fine(self, bundle: Bundle) -> None:
        link = bundle.path.parent / "link"
        link.symlink_to(bundle.path)
        assert open_bundle(link).manifest == bundle.manifest

    def test_a_named_pipe_does_not_hang(self, bundle: Bundle) -> None:
        (bundle.path / "engine.onnx").unlink()
        os.mkfifo(bundle.path / "engine.onnx")
        with pytest.raises(BundleError, match="not a regular file"):
            open_bundle(bundle.path)

    def test_an_engine_file_without_hash_is_refused(self, bundle: Bundle) -> None:
        edit(bundle, lambda data: data["files"].pop("engine.onnx"))
        with pytest.raises(BundleError, match="without its hash"):
            open_bundle(bundle.path)

    def test_a_manifest_that_contradicts_itself_is_refused(self, bundle: Bundle) -> None:
        edit(bundle, lambda data: data["latents"].update(height=10))
        with pytest.raises(BundleError, match="N is 20 by its latents, 16 by its contract"):
            open_bundle(bundle.path)


@pytest.fixture(scope="module")
def pristine() -> dict[str, bytes]:
    """Every file of a whole bundle."""
    with tempfile.TemporaryDirectory() as folder:
        root = write_fake_bundle(Path(folder) / "bundle").path
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class TestDamage:
    """Random damage, as a bad disk or a broken download does it."""

    @staticmethod
    def opened(files: dict[str, bytes]) -> Bundle:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).parent.mkdir(exist_ok=True)
                (Path(folder) / name).write_bytes(content)
            return open_bundle(folder)

    @given(data=st.data())
    def test_any_flipped_bit_in_a_recorded_file_is_found(self, pristine: dict[str, bytes], data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(["engine.onnx", "onnx/graph.onnx"]))
        damaged = bytearray(pristine[name])
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(BundleError, match=name):
            self.opened({**pristine, name: bytes(damaged)})

    @given(data=st.data())
    def test_any_truncation_is_found(self, pristine: dict[str, bytes], data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(pristine)))
        cut = pristine[name][: data.draw(st.integers(0, len(pristine[name]) - 2))]
        with pytest.raises(BundleError):
            self.opened({**pristine, name: cut})

    @given(data=st.data())
    def test_a_flipped_bit_in_the_manifest_raises_nothing_but_bundle_errors(
        self, pristine: dict[str, bytes], data: st.DataObject
    ) -> None:
        damaged = bytearray(pristine["manifest.json"])
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        try:
            assert isinstance(self.opened({**pristine, "manifest.json": bytes(damaged)}).manifest, Manifest)
        except BundleError as error:
            assert "\n" not in str(error).strip()


class TestFit:
    @pytest.mark.parametrize("installed", ["1.6.0.10", "1.7.2.1"])
    def test_an_engine_tied_to_another_tensorrt_names_both_versions(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str
    ) -> None:
        monkeypatch.setattr("accelaes_export.bundle._installed", lambda package: installed)
        with pytest.raises(BundleError, match=rf"1\.7\.1\.116, and {installed} is installed.*pip install"):
            rtx_bundle(tmp_path).session()

    @pytest.mark.parametrize("installed", ["1.7.1.116", "1.7.1.9", None])
    def test_the_same_release_fits_and_an_absent_one_is_left_to_the_backend(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str | None
    ) -> None:
        monkeypatch.setattr("accelaes_export.bundle._installed", lambda package: installed)
        rtx_bundle(tmp_path).check_fit()

    def test_threads_share_one_session(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        from concurrent.futures import ThreadPoolExecutor

        calls = []

        def open_engine(folder: Path, contract: object, files: tuple[str, ...]) -> object:
            calls.append((folder, files))
            return object()

        backends = SimpleNamespace(backend=lambda name: SimpleNamespace(open=open_engine))
        monkeypatch.setitem(sys.modules, "accelaes_export.backends", backends)
        with ThreadPoolExecutor(8) as pool:
            sessions = list(pool.map(lambda _: bundle.session(), range(32)))
        assert len(set(map(id, sessions))) == 1
        assert calls == [(bundle.path, ("engine.onnx",))]


def rtx_bundle(folder: Path) -> Bundle:
    record = fake_manifest().backend.model_copy(
        update={"name": "tensorrt-rtx", "versions": {"tensorrt_rtx": "1.7.1.116"}, "targets": ("sm120",)}
    )
    return write_fake_bundle(folder / "rtx", backend=record)


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

    @pytest.mark.parametrize("moment", ["sha256_of", "_write_text", "_swap"])
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

        monkeypatch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_fake_bundle(bundle.path, engine=b"new")
        assert open_bundle(bundle.path).manifest == bundle.manifest


class TestBuildLock:
    def test_a_second_build_fails_at_once_and_names_the_first(self, tmp_path: Path) -> None:
        with build_lock(tmp_path / "b"):
            code = (
                f"from accelaes_export.bundle_writing import build_lock\nwith build_lock({str(tmp_path / 'b')!r}): pass"
            )
            second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"Another build (process {os.getpid()}) is writing" in second.stderr

    def test_is_gone_afterwards_even_after_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), build_lock(tmp_path / "b"):
            raise ZeroDivisionError
        assert names(tmp_path) == set()
        with build_lock(tmp_path / "b"):
            pass

    def test_two_folders_are_two_locks(self, tmp_path: Path) -> None:
        with build_lock(tmp_path / "a"), build_lock(tmp_path / "b"):
            pass

    def test_the_lock_file_of_a_killed_build_blocks_nobody(self, tmp_path: Path) -> None:
        (tmp_path / ".b.lock").write_text("1")
        with build_lock(tmp_path / "b"):
            pass

    def test_what_a_killed_build_left_is_cleared(self, bundle: Bundle) -> None:
        parent = bundle.path.parent
        (parent / ".bundle.writing-7").mkdir()
        bundle.path.rename(parent / ".bundle.old-7")  # killed between the two renames
        with build_lock(bundle.path):
            assert open_bundle(bundle.path).manifest == bundle.manifest
        assert names(parent) == {"bundle"}

    def test_of_racing_processes_every_winner_writes_a_whole_bundle(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        with context.Pool(2) as pool:
            outcomes = pool.map(_build, [(str(tmp_path / "b"), worker) for worker in range(2)], chunksize=1)
        assert all(set(outcome) <= {"written", "refused"} for outcome in outcomes)
        assert "written" in outcomes[0] + outcomes[1]
        open_bundle(tmp_path / "b").check()
        assert names(tmp_path) == {"b"}


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
