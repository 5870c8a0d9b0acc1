"""Opening and checking bundles: whatever happened to the folder, one sentence says which file and how."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelaes_export.bundle.reading import Bundle, open_bundle
from accelaes_export.contract.manifest import Manifest
from accelaes_export.errors import BundleError, InputError
from tests.fake_bundle import ENGINE, fake_manifest, write_fake_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_fake_bundle(tmp_path / "bundle")


def size(data: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of its only size."""
    (only,) = data["geometries"]
    return only


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest on disk."""
    path = bundle.path / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


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
        edit(bundle, lambda data: data.update(schema_version=99, created_by="accelaes-export 9.0", novelty=1))
        with pytest.raises(BundleError, match=r"accelaes-export 9\.0.*--upgrade"):
            open_bundle(bundle.path)

    @pytest.mark.parametrize(
        "change",
        [
            lambda data, text: data.update(schema_version=99, created_by=text),
            lambda data, text: data["call"].update(signature=[text]),
            lambda data, text: size(data)["contract"]["cache"][0].update(name=text),
            lambda data, text: data["backend"].update(files=[text]),
            lambda data, text: data.update(files={f"../{text}": {"sha256": "0", "size": 0}}),
            lambda data, text: data.update({text: 1}),
        ],
    )
    def test_what_was_damaged_beyond_all_length_is_quoted_in_short(self, bundle: Bundle, change: Any) -> None:
        edit(bundle, lambda data: change(data, 5000 * "x"))
        with pytest.raises(BundleError) as caught:
            open_bundle(bundle.path)
        assert len(str(caught.value)) < 600

    def test_an_unknown_or_missing_field_is_named(self, bundle: Bundle) -> None:
        edit(bundle, lambda data: data.pop("family"))
        with pytest.raises(BundleError, match="family"):
            open_bundle(bundle.path)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda data: data["text"].clear(), "text entries have 0 positions, and its contract 6"),
            (lambda data: data["text"].append(data["text"][0]), "text entries have 12 positions"),
            (lambda data: data["text"][0]["tokenizers"].clear(), "no tokenizer"),
            (lambda data: size(data)["contract"]["cache"].pop(), "takes cache.1.v_bg, which is not in the cache"),
            (
                lambda data: size(data)["contract"]["cache"][0].update(head_dim=5),
                "isn't as the engine has it",
            ),
            (lambda data: size(data)["contract"]["cache"][0].update(head_dim=10**30), "head_dim"),
            (lambda data: size(data)["contract"]["inputs"].pop(2), "no tensor encoder_hidden_states"),
            (
                lambda data: size(data)["contract"]["inputs"].append(size(data)["contract"]["inputs"][0]),
                "is there twice",
            ),
            (lambda data: size(data)["contract"]["inputs"][0].update(optional=True), "may be left out, and is no mask"),
            (lambda data: size(data)["latents"].update(channels=5), "its latents are"),
            (lambda data: size(data)["latents"].update(height=0), "latents.height"),
            (lambda data: data["bucket_fractions"].__setitem__(0, 0.9), "bucket 0.9 of 16 tokens has 4"),
            (lambda data: size(data)["bucket_flops"].pop("4"), "FLOPs are counted for"),
            (lambda data: data.update(affinity_layers=[7]), "of 2"),
            (lambda data: data["call"]["guidance"].update(layout="none"), "guidance is none"),
            (lambda data: data["call"].update(signature=["timestep"]), "call begins with timestep"),
            (lambda data: data["call"].update(pipelines=[]), "serves no pipeline"),
            (lambda data: data.update(recipe={"text": []}), "text was asked for"),
            (lambda data: data.update(recipe={"token_scorer": "clip"}), "token_scorer was asked for as clip"),
            (lambda data: data.update(schema_version=True), "no schema_version"),
            (lambda data: data["files"]["engine.onnx"].update(sha256="x"), "sha256"),
            (lambda data: data["defaults"].update(steps=10**6), "defaults.steps"),
            (lambda data: data.update(model="\ud800"), "is not JSON"),
        ],
    )
    def test_what_a_manifest_says_twice_must_agree(
        self, bundle: Bundle, change: Callable[[dict[str, Any]], object], said: str
    ) -> None:
        edit(bundle, change)
        with pytest.raises(BundleError, match=said):
            open_bundle(bundle.path)

    def test_files_of_the_hubs_cache_are_links_to_blobs_and_no_other_links_are_followed(
        self, bundle: Bundle, tmp_path: Path
    ) -> None:
        repository = tmp_path / "models--me--mine"
        snapshot, blobs = repository / "snapshots/0123/engines", repository / "blobs"
        blobs.mkdir(parents=True)
        for path in (path for path in bundle.path.rglob("*") if path.is_file()):
            link, blob = snapshot / path.relative_to(bundle.path), blobs / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(path.read_bytes())
            link.symlink_to(os.path.relpath(blob, link.parent))
        open_bundle(snapshot).check()
        engine = snapshot / "engine.onnx"
        engine.unlink()
        engine.symlink_to(bundle.path / "engine.onnx")
        with pytest.raises(BundleError, match="symbolic link"):
            open_bundle(snapshot)

    def test_a_pipe_in_place_of_the_manifest_is_not_waited_for(self, bundle: Bundle) -> None:
        (bundle.path / "manifest.json").unlink()
        os.mkfifo(bundle.path / "manifest.json")
        with pytest.raises(BundleError, match="not a regular file"):
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
        edit(bundle, lambda data: size(data)["latents"].update(height=10))
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
        monkeypatch.setattr("accelaes_export.bundle.reading._installed", lambda package: installed)
        with pytest.raises(BundleError, match=rf"1\.7\.1\.116, and {installed} is installed.*pip install"):
            rtx_bundle(tmp_path).session()

    @pytest.mark.parametrize("installed", ["1.7.1.116", "1.7.1.9", None])
    def test_the_same_release_fits_and_an_absent_one_is_left_to_the_backend(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str | None
    ) -> None:
        monkeypatch.setattr("accelaes_export.bundle.reading._installed", lambda package: installed)
        rtx_bundle(tmp_path).check_fit()

    def test_threads_share_one_session(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []

        def open_engine(folder: Path, contract: object, files: tuple[str, ...], **built_with: object) -> object:
            calls.append((folder, files, built_with))
            return object()

        importlib.import_module("accelaes_export.backends.joined")
        backends = SimpleNamespace(backend=lambda name: SimpleNamespace(open=open_engine, version_bound=None))
        monkeypatch.setitem(sys.modules, "accelaes_export.backends", backends)
        with ThreadPoolExecutor(8) as pool:
            sessions = list(pool.map(lambda _: bundle.session(), range(32)))
        assert len(set(map(id, sessions))) == 1
        record = bundle.manifest.backend
        built_with = {"versions": record.versions, "targets": record.targets, "cuda_graphs": True}
        assert calls == [(bundle.path, ("engine.onnx",), built_with)]


def rtx_bundle(folder: Path) -> Bundle:
    record = fake_manifest().backend.model_copy(
        update={"name": "tensorrt-rtx", "versions": {"tensorrt_rtx": "1.7.1.116"}, "targets": ("sm120",)}
    )
    return write_fake_bundle(folder / "rtx", backend=record)
