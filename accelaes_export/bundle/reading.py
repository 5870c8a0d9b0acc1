"""A bundle: a folder of engine files and the manifest that describes them. Opening one checks that it is whole.

`open_bundle` reads the folder and says in one sentence what is wrong with it. Whether a whole bundle can run on
*this* machine is a second question (`Bundle.check_fit`), so that `inspect` works where the engine doesn't.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import ValidationError

from accelaes_export.bundle.opening import open_engines, open_graph, open_programs
from accelaes_export.bundle.own_bundles import is_own
from accelaes_export.bundle.signing import SIGNATURE, require_signature
from accelaes_export.contract.components import component_files
from accelaes_export.contract.consistency import contradiction
from accelaes_export.contract.manifest import SCHEMA_VERSION, FileRecord, Manifest
from accelaes_export.contract.presets import preset_files
from accelaes_export.contract.upgrade import upgraded
from accelaes_export.errors import BundleError, InputError, shortened
from accelaes_export.files.hashing import sha256_of
from accelaes_export.files.reading import parse_json, read_given
from accelaes_export.files.replacing import bring_back
from accelaes_export.memory import require_address_space

if TYPE_CHECKING:
    from accelaes_export.backends.base import Session
    from accelaes_export.backends.graphs import OpenedGraph
    from accelaes_export.contract.presets import GraphRecord, Preset

MANIFEST = "manifest.json"


class Bundle:
    """An opened bundle: its folder, its manifest, and one session that all its users share."""

    def __init__(self, path: Path, manifest: Manifest, *, cuda_graphs: bool = True, allow_code: bool = False) -> None:
        self.path = path
        self.manifest = manifest
        self._cuda_graphs = cuda_graphs
        self._allow_code = allow_code
        self._session: Session | None = None
        self._graphs: dict[tuple[str, ...], OpenedGraph] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, model={self.manifest.model!r}, backend={self.manifest.backend.name!r})"

    def session(self) -> Session:
        """The engine, opened at the first call and shared by every pipeline and thread after it.

        Raises BundleError where this machine has another version than the engine needs, or it is of native code of
        somebody else's, and MissingComponentError where the backend or its device isn't there.
        """
        with self._lock:
            if self._session is None:
                self._check_code()
                self.check_fit()
                require_address_space(sum(record.size for record in self.manifest.files.values()))
                geometry = self.manifest.geometry
                folders = {folder: self.path / folder for folder in geometry.folders}
                self._session = open_engines(self.manifest.backend, geometry, folders, cuda_graphs=self._cuda_graphs)
            return self._session

    def preset(self, name: str) -> Preset:
        """The preset called `name`; InputError, which lists those there are, where there is none."""
        presets = {preset.name: preset for preset in self.manifest.geometry.presets}
        if name not in presets:
            there = f"it has {', '.join(presets)}" if presets else "it has none"
            raise InputError(
                f"Bundle {self.path} has no preset {name!r}; {there}: take one of them, or build it again with "
                f"--presets {name}."
            )
        return presets[name]

    def programs(self, preset: Preset) -> dict[str, OpenedGraph]:
        """A preset's programs by name, opened where the engine is."""
        session = self.session()  # which asks first whether its code is trusted
        return open_programs(self.manifest.backend, preset, self.path.joinpath, session.device)

    def graph(self, record: GraphRecord) -> OpenedGraph:
        """A component's graph, opened where the engine is at the first call and shared after it."""
        session = self.session()
        with self._lock:
            if record.files not in self._graphs:
                opened = open_graph(self.manifest.backend, record, self.path.joinpath, session.device)
                self._graphs[record.files] = opened
            return self._graphs[record.files]

    def check(self) -> None:
        """Hash every file again; BundleError names the first that differs from the manifest."""
        for name, record in self.manifest.files.items():
            check_file(self.path, name, record, hashed=True)

    def _check_code(self) -> None:
        from accelaes_export.backends import backend

        name = self.manifest.backend.name
        if not self._allow_code and backend(name).runs_code and not is_own(self.path, manifest_bytes(self.path)):
            raise BundleError(
                f"Bundle {self.path} has native code ({name}), which does whatever its maker wanted, and you didn't "
                "build it here: trust its maker's key (--trust), or allow it (--allow-code; in Python allow_code=True)."
            )

    def check_fit(self) -> None:
        """BundleError where an installed package differs from the version that the engine is tied to.

        A package that isn't installed is the backend's to report, with the command that installs it.
        """
        from accelaes_export.backends import backend

        record = self.manifest.backend
        package = backend(record.name).version_bound
        if package is None:
            return
        built = {name.replace("_", "-"): version for name, version in record.versions.items()}.get(package)
        installed = _installed(package)
        if built and installed and _release(built) != _release(installed):
            raise BundleError(
                f"Bundle {self.path} was built with {package} {built}, and {installed} is installed here, which "
                f"can't read it; pip install {package}=={built}, or build the bundle again."
            )


def open_bundle(
    path: str | Path,
    check_hashes: bool = True,
    *,
    cuda_graphs: bool = True,
    trust: Sequence[str | Path] = (),
    allow_code: bool = False,
) -> Bundle:
    """Open the bundle in folder `path`.

    Args:
        path: the folder that `build` wrote.
        check_hashes: read every file once and compare its SHA-256; sizes are compared in any case.
        cuda_graphs: on GPUs, capture a run's engine calls as CUDA graphs, for it and later runs to replay.
        trust: public keys (see signing.py), of which one must have signed the bundle; hashes are compared then.
        allow_code: run engines of native code (aoti) that were built by somebody else, or elsewhere.

    Raises:
        InputError: `path` is no folder, or something in `trust` no key.
        BundleError: it isn't signed by a key in `trust`, is no bundle, of a newer schema, or not whole; the message
            says which file and how it differs.
    """
    folder = Path(path)
    with suppress(OSError):
        bring_back(Path(os.path.realpath(folder)))
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}; give the folder of a bundle, as accelaes-export build writes it.")
    if isinstance(trust, (str, Path)):
        trust = (trust,)
    data = manifest_bytes(folder)
    if trust:
        require_signature(folder, data, trust)
    manifest = _parsed(folder, data)
    for name, record in manifest.files.items():
        check_file(folder, name, record, hashed=check_hashes or bool(trust))
    return Bundle(folder, manifest, cuda_graphs=cuda_graphs, allow_code=allow_code or bool(trust))


def manifest_bytes(folder: Path) -> bytes:
    """A bundle's manifest as it is written."""
    path = folder / MANIFEST
    try:
        return read_given(path)
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}.") from error
    except OSError as error:
        raise BundleError(f"{path} can't be read: {error.strerror}.") from error


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle's folder, with its own statements checked against each other."""
    return _parsed(folder, manifest_bytes(folder))


def _parsed(folder: Path, written: bytes) -> Manifest:
    path = folder / MANIFEST
    try:
        data = parse_json(written)
    except ValueError as error:
        raise BundleError(f"{path} is not JSON, so the bundle is damaged ({error}); build it again.") from error
    if not isinstance(data, dict) or type(data.get("schema_version")) is not int:
        raise BundleError(f"{path} is not a manifest of accelaes-export: it has no schema_version.")
    version = data["schema_version"]
    if version > SCHEMA_VERSION:
        writer = shortened(data.get("created_by", "a newer accelaes-export"))
        raise BundleError(
            f"{folder} has schema {version} and was written by {writer}; "
            f"this release reads up to schema {SCHEMA_VERSION}: pip install --upgrade accelaes-export."
        )
    try:
        manifest = Manifest.model_validate(upgraded(data))
    except RecursionError as error:
        raise BundleError(f"{path} is damaged: it is nested too deep; build the bundle again.") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = shortened(".".join(str(part) for part in first["loc"]), 120)
        raise BundleError(
            f"{path} is damaged at {field or 'its top'}: {first['msg']}; build the bundle again."
        ) from error
    _check_statements(folder, manifest)
    return manifest


def _check_statements(folder: Path, manifest: Manifest) -> None:
    """Refuse a manifest that contradicts itself: such a one was edited, and would fail later and less clearly."""
    path = folder / MANIFEST
    for name in manifest.files:
        if not is_plain_name(name):
            raise BundleError(
                f"{path} names the file {shortened(name)!r}, which lies outside the bundle; nothing was read."
            )
    files = [*manifest.backend.files, *(f"{e.folder}/{name}" for e in manifest.geometry.beside for name in e.files)]
    files += preset_files(manifest.geometry.presets)
    files += component_files(manifest.components, manifest.geometry.vae)
    unlisted = [name for name in files if name not in manifest.files]
    if unlisted:
        raise BundleError(f"{path} lists the file {shortened(unlisted[0])!r} without its hash; build the bundle again.")
    clause = contradiction(manifest)
    if clause is not None:
        raise BundleError(f"{path} contradicts itself: {shortened(clause, 300)}; build the bundle again.")


def is_plain_name(name: str) -> bool:
    """Whether `name` is a relative path that stays in its folder and isn't the manifest's own."""
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return inside and name.isprintable() and "\\" not in name and str(path) not in (MANIFEST, SIGNATURE)


def check_file(folder: Path, name: str, record: FileRecord, hashed: bool) -> None:
    """BundleError unless `name` is a regular file of the recorded size and, when `hashed`, of the recorded SHA-256.

    In the Hub's cache files are links to the repository's blobs, and may be; no other links are followed.
    """
    path = folder / name
    try:
        real = path.resolve()
        if real != folder.resolve() / PurePosixPath(name) and not _is_blob(real, folder.resolve()):
            raise BundleError(f"Bundle {folder} has a symbolic link in place of {name}; a bundle holds plain files.")
        status = real.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"Bundle {folder}: {name} is not a regular file.")
        if status.st_size != record.size:
            how = "truncated" if status.st_size < record.size else "altered"
            raise BundleError(
                f"Bundle {folder}: {name} is {how}: {status.st_size} bytes, and the manifest says {record.size}; "
                "copy it again or build it again."
            )
        found = sha256_of(path) if hashed else record.sha256
    except FileNotFoundError as error:
        raise BundleError(f"Bundle {folder} lacks {name}; copy it again or build it again.") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links, before Python 3.13
        raise BundleError(f"Bundle {folder}: {name} can't be read: {error}.") from error
    if found != record.sha256:
        raise BundleError(
            f"Bundle {folder}: {name} was altered: its SHA-256 is {found[:16]}…, and the manifest says "
            f"{record.sha256[:16]}…; copy it again or build it again."
        )


def _is_blob(real: Path, folder: Path) -> bool:
    """Whether a file is a blob of the Hub's cache, REPOSITORY/blobs/HASH, and the folder REPOSITORY/snapshots/..."""
    snapshots = next((parent for parent in folder.parents if parent.name == "snapshots"), None)
    return snapshots is not None and real.parent == snapshots.parent / "blobs"


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[str, ...]:
    """major, minor and patch: TensorRT's fourth number is only a build number."""
    return tuple(version.split("+")[0].split(".")[:3])
