"""Who made a bundle: an Ed25519 signature of its manifest, which has the hashes of everything else.

Hashes alone tell damage; whoever changes an engine can write its new hash. Keys are PEM files, as
``openssl genpkey -algorithm ed25519 -out key.pem`` and ``openssl pkey -in key.pem -pubout -out public.pem`` make them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accelaes_export.errors import BundleError, InputError, MissingComponentError
from accelaes_export.files.reading import read_given

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.sig"
_HEX = re.compile(r"[0-9a-fA-F]{64}")
_MAKE = "make one with: openssl genpkey -algorithm ed25519 -out key.pem"


def signing_key(path: str | Path) -> Ed25519PrivateKey:
    """The private key in a PEM file.

    Raises:
        InputError: no such file, encrypted, or another kind of key.
        MissingComponentError: the package cryptography isn't installed.
    """
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise InputError(f"The key {path} is encrypted; give one that isn't, and that only you can read.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path} is no private key in PEM; {_MAKE}.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} is a private key of another kind; bundles are signed with Ed25519: {_MAKE}.")
    return key


def sign(key: Ed25519PrivateKey, manifest: bytes) -> str:
    """What goes into the bundle's `manifest.sig`: the public key and the signature, in hex, a line each."""
    return f"{key.public_key().public_bytes_raw().hex()}\n{key.sign(manifest).hex()}\n"


def signer(folder: Path) -> str | None:
    """The public key in hex that a bundle says it is signed with; None for an unsigned one. Proves nothing."""
    try:
        return _parts(folder)[0].hex()
    except FileNotFoundError:
        return None


def require_signature(folder: Path, manifest: bytes, trust: Sequence[str | Path]) -> None:
    """Check a bundle's signature.

    Args:
        manifest: the manifest's bytes.
        trust: public keys, of which one must have signed it: PEM files, or 64 hex digits.

    Raises:
        BundleError: it isn't signed, or not by one of these.
        InputError: what is no public key.
        MissingComponentError: the package cryptography isn't installed.
    """
    keys = [_public_key(given) for given in trust]
    try:
        said, signature = _parts(folder)
    except FileNotFoundError:
        raise BundleError(
            f"Bundle {folder} isn't signed, and only signed ones are trusted here; build it with --sign, or leave "
            "trust out."
        ) from None
    from cryptography.exceptions import InvalidSignature

    for key in keys:
        if key.public_bytes_raw() != said:
            continue
        try:
            key.verify(signature, manifest)
        except InvalidSignature:
            raise BundleError(
                f"Bundle {folder} was changed after it was signed: the signature isn't of its manifest; copy it again."
            ) from None
        return
    raise BundleError(
        f"Bundle {folder} is signed with {said.hex()[:16]}…, which is none of the {len(keys)} keys that are trusted "
        "here; add it to them if you know whose it is."
    )


def _parts(folder: Path) -> tuple[bytes, bytes]:
    """Public key and signature; FileNotFoundError where there is none."""
    path = folder / SIGNATURE
    try:
        public, signature = (bytes.fromhex(line) for line in read_given(path).decode("ascii").split())
        if (len(public), len(signature)) != (32, 64):
            raise ValueError("of another length")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is no signature ({error}); copy the bundle again.") from error
    return public, signature


def _public_key(given: str | Path) -> Ed25519PublicKey:
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if isinstance(given, str) and _HEX.fullmatch(given.strip()):
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(given.strip()))
    data = _read(given)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{given} is no public key; give 64 hex digits, or a PEM file (openssl pkey -in key.pem -pubout makes one)."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{given} is a public key of another kind; bundles are signed with Ed25519.")
    return key


def _read(path: str | Path) -> bytes:
    try:
        return read_given(Path(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"The key {path} can't be read: {reason}; give a PEM file.") from error


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MissingComponentError(
            'Signatures need the package cryptography: pip install "accelaes-export[sign]".'
        ) from error
