"""A signature says who made a bundle, and native code runs only where its maker is known."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from accelaes_export.bundle import own_bundles
from accelaes_export.bundle.reading import Bundle, open_bundle
from accelaes_export.bundle.signing import SIGNATURE, sign, signer, signing_key
from accelaes_export.bundle.writing import write_bundle
from accelaes_export.errors import BundleError, InputError
from tests.cli.conftest import command
from tests.fake_bundle import fake_manifest, write_fake_bundle

__all__ = ["command"]

PRIVATE = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
PUBLIC = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


class Keys:
    """A pair as files, and the public one in hex."""

    def __init__(self, folder: Path, name: str) -> None:
        key = ed25519.Ed25519PrivateKey.generate()
        self.private, self.public = folder / f"{name}.pem", folder / f"{name}-public.pem"
        self.private.write_bytes(key.private_bytes(*PRIVATE))
        self.public.write_bytes(key.public_key().public_bytes(*PUBLIC))
        self.hex = key.public_key().public_bytes_raw().hex()


@pytest.fixture
def mine(tmp_path: Path) -> Keys:
    return Keys(tmp_path, "mine")


def signed(folder: Path, keys: Keys, **changes: object) -> Bundle:
    source = folder.with_name("engine")
    source.write_bytes(b"engine")
    key = signing_key(keys.private)
    return write_bundle(folder, fake_manifest(**changes), {"engine.onnx": source}, key=key)


def test_a_signed_bundle_opens_for_those_who_trust_its_key(tmp_path: Path, mine: Keys) -> None:
    folder = signed(tmp_path / "b", mine).path
    other = Keys(tmp_path, "other")
    for trust in ([mine.public], [mine.hex], [str(mine.public)], [other.public, mine.hex.upper()], mine.public):
        assert open_bundle(folder, trust=trust).manifest.files
    assert signer(folder) == mine.hex
    assert open_bundle(folder).manifest.files  # whoever trusts everybody
    with pytest.raises(BundleError, match="which is none of the 1 keys that are trusted"):
        open_bundle(folder, trust=[other.public])


def test_an_unsigned_bundle_opens_as_ever_and_not_for_those_who_trust_keys(tmp_path: Path, mine: Keys) -> None:
    folder = write_fake_bundle(tmp_path / "b").path
    assert open_bundle(folder) and signer(folder) is None
    with pytest.raises(BundleError, match="isn't signed"):
        open_bundle(folder, trust=[mine.public])


def test_a_changed_engine_with_its_new_hash_is_noticed(tmp_path: Path, mine: Keys) -> None:
    folder = signed(tmp_path / "b", mine).path
    with (folder / "engine.onnx").open("r+b") as file:
        file.write(b"E")
    with pytest.raises(BundleError, match="altered"):
        open_bundle(folder, check_hashes=False, trust=[mine.hex])
    (folder / "engine.onnx").write_bytes(b"engine")
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"a test"', '"a lie"'))
    assert open_bundle(folder)  # a manifest's hashes tell damage, not intent
    with pytest.raises(BundleError, match="changed after it was signed"):
        open_bundle(folder, trust=[mine.hex])


def test_somebody_elses_signature_under_a_trusted_name_is_none(tmp_path: Path, mine: Keys) -> None:
    folder = signed(tmp_path / "b", Keys(tmp_path, "other")).path
    forged = (folder / SIGNATURE).read_text().split()[1]
    (folder / SIGNATURE).write_text(f"{mine.hex}\n{forged}\n")
    with pytest.raises(BundleError, match="changed after it was signed"):
        open_bundle(folder, trust=[mine.hex])


@pytest.mark.parametrize("text", ["", "00", "zz\nzz\n", "00\n00\n", "é", f"{'0' * 64}\n{'0' * 128}\n00"])
def test_what_is_no_signature_is_said(tmp_path: Path, mine: Keys, text: str) -> None:
    folder = signed(tmp_path / "b", mine).path
    (folder / SIGNATURE).write_text(text)
    with pytest.raises(BundleError, match="is no signature"):
        open_bundle(folder, trust=[mine.hex])


def test_what_is_no_key_is_said_before_anything_else(tmp_path: Path, mine: Keys) -> None:
    folder = signed(tmp_path / "b", mine).path
    other_kind = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (tmp_path / "rsa.pem").write_bytes(other_kind.private_bytes(*PRIVATE))
    (tmp_path / "rsa-public.pem").write_bytes(other_kind.public_key().public_bytes(*PUBLIC))
    encrypted = (*PRIVATE[:2], serialization.BestAvailableEncryption(b"secret"))
    (tmp_path / "locked.pem").write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(*encrypted))
    for given, said in (
        (tmp_path / "nowhere.pem", "can't be read"),
        (tmp_path, "can't be read"),
        (mine.public, "no private key in PEM"),
        (tmp_path / "rsa.pem", "another kind"),
        (tmp_path / "locked.pem", "encrypted"),
    ):
        with pytest.raises(InputError, match=said):
            signing_key(given)
    for given, said in (
        ("00", "can't be read"),
        (mine.private, "no public key"),
        (tmp_path / "rsa-public.pem", "kind"),
    ):
        with pytest.raises(InputError, match=said):
            open_bundle(folder, trust=[given])


def foreign(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of native code that somebody else made."""
    monkeypatch.setenv("XDG_STATE_HOME", str(folder.with_name("theirs")))
    record = fake_manifest().backend.model_copy(update={"name": "aoti"})
    path = write_fake_bundle(folder, backend=record).path
    monkeypatch.setenv("XDG_STATE_HOME", str(folder.with_name("ours")))
    return path


def test_native_code_of_somebody_elses_runs_only_when_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: Keys
) -> None:
    opened: list[object] = []
    monkeypatch.setattr("accelaes_export.bundle.reading.open_engines", lambda *_, **__: opened.append(1) or "session")
    folder = foreign(tmp_path / "b", monkeypatch)
    with pytest.raises(BundleError, match=r"has native code \(aoti\).*--allow-code"):
        open_bundle(folder).session()
    assert not opened
    assert open_bundle(folder, allow_code=True).session() == "session"
    (folder / SIGNATURE).write_text(sign(signing_key(mine.private), (folder / "manifest.json").read_bytes()))
    with pytest.raises(BundleError, match="native code"):
        open_bundle(folder).session()  # signed, but nobody said that the key is trusted
    assert open_bundle(folder, trust=[mine.hex]).session() == "session"


def test_native_code_that_this_user_built_here_runs_wherever_it_lies_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelaes_export.bundle.reading.open_engines", lambda *_, **__: "session")
    record = fake_manifest().backend.model_copy(update={"name": "aoti"})
    folder = write_fake_bundle(tmp_path / "b", backend=record).path
    folder.rename(tmp_path / "moved")
    assert open_bundle(tmp_path / "moved").session() == "session"
    data = json.loads((tmp_path / "moved/manifest.json").read_text())
    data["measured_on"] = "elsewhere"
    (tmp_path / "moved/manifest.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="native code"):
        open_bundle(tmp_path / "moved").session()


def test_engines_built_is_this_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "engines/built").mkdir(parents=True)
    folder = foreign(tmp_path / "engines/built/b", monkeypatch)
    assert own_bundles.is_own(folder, b"")
    real = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: real + 1)
    assert not own_bundles.is_own(folder, b"")


def test_where_no_state_can_be_kept_code_has_to_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    own_bundles.remember(b"{}")
    assert not own_bundles.is_own(tmp_path, b"{}")


def test_the_command_line_trusts_and_refuses(tmp_path: Path, mine: Keys, command) -> None:
    folder = signed(tmp_path / "b", mine).path
    assert mine.hex in command("inspect", folder).stdout
    result = command("run", folder, "--prompt", "x", "--trust", "0" * 64)
    assert (result.exit_code, result.stdout) == (2, "") and "none of the 1 keys" in result.stderr
    result = command("build", "--model", "shapes", "--sign", tmp_path / "none.pem")
    assert (result.exit_code, result.stdout) == (2, "") and "none.pem can't be read" in result.stderr
