"""Signatures of artifacts: Ed25519 (RFC 8032), by the package `cryptography`, keys in PEM files.

The manifest is signed. It names the SHA-256 of every other member, and each member is compared
with that before it is used, so the signature covers every byte that is loaded.

It lies inside of the artifact, as a member of the zip that the manifest does not name: an artifact
is one file, and a signature beside it would be lost when that is copied or renamed. Whoever asks
for no signature reads a signed file like any other.

The member holds the signer's public key before the signature, only to tell a signature by another
key from a changed file: the key that counts is the one that the user gives.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from leakyforge.errors import ArtifactSignatureError, KeyFileError, MissingDependencyError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

MEMBER = "signature.ed25519"
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64
# Of the member.
SIZE = _KEY_BYTES + _SIGNATURE_BYTES
# So that a signature of something else by the same key is none of an artifact.
_CONTEXT = b"leakyforge artifact manifest\n"


def load_private_key(path: str | Path) -> "Ed25519PrivateKey":
    """The key that signs.

    Raises:
        KeyFileError: no such file, or not an Ed25519 private key in PEM, not encrypted.
        MissingDependencyError: `cryptography` is not installed.
    """
    advice = "make one with: openssl genpkey -algorithm ed25519 -out private.pem"
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    text = _read(path, advice)
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except TypeError as error:
        raise KeyFileError(
            f"key file {path} is encrypted; decrypt it with: openssl pkey -in {path} -out FILE"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} holds no private key in PEM; {advice}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"the private key in {path} is not for Ed25519; {advice}")
    return key


def load_public_key(path: str | Path) -> "Ed25519PublicKey":
    """The key that a signature is checked with.

    Raises:
        KeyFileError: no such file, or not an Ed25519 public key in PEM.
        MissingDependencyError: `cryptography` is not installed.
    """
    advice = "make it with: openssl pkey -in private.pem -pubout -out public.pem"
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    text = _read(path, advice)
    try:
        key = serialization.load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} holds no public key in PEM; {advice}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"the public key in {path} is not for Ed25519; {advice}")
    return key


def sign(manifest: bytes, key: "Ed25519PrivateKey") -> bytes:
    """The member for a manifest, `SIZE` bytes."""
    member: bytes = key.public_key().public_bytes_raw() + key.sign(_CONTEXT + manifest)
    return member


def check_signature(
    manifest: bytes, member: bytes | None, key_file: str | Path, artifact: Path
) -> None:
    """Make sure that a manifest was signed by a key.

    Args:
        manifest: its bytes.
        member: of the artifact, None where there is none.
        key_file: the public key.
        artifact: its path, for the error.

    Raises:
        ArtifactSignatureError: it is not signed, by another key, or was changed since.
        KeyFileError: `key_file` is no public key.
        MissingDependencyError: `cryptography` is not installed.
    """
    key = load_public_key(key_file)
    from cryptography.exceptions import InvalidSignature

    if member is None:
        raise ArtifactSignatureError(
            f"artifact {artifact} is not signed, and a signature by {key_file} is asked for; get a "
            "signed one from whoever made it"
        )
    wanted, signer = key.public_bytes_raw(), member[:_KEY_BYTES]
    if signer != wanted:
        raise ArtifactSignatureError(
            f"artifact {artifact} is signed by another key ({signer.hex()}) than {key_file} "
            f"({wanted.hex()}); give the public key of whoever made it, if you trust them"
        )
    try:
        key.verify(member[_KEY_BYTES:], _CONTEXT + manifest)
    except InvalidSignature as error:
        raise ArtifactSignatureError(
            f"artifact {artifact} was changed after it was signed by {key_file}; get it again from "
            "whoever made it"
        ) from error


def _read(path: str | Path, advice: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise KeyFileError(f"key file {path} cannot be read: {error.strerror}; {advice}") from error


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "signatures need cryptography; pip install 'leakyforge[sign]'"
        ) from error
