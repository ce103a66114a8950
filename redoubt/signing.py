"""Signatures of model folders: Ed25519 over the manifest, which in turn names the sha256 of every file.

Who holds the private key made the version; who only can write to the artifact store cannot pretend to.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from redoubt.errors import ArtifactError, InvalidInput

SIGNATURE = "manifest.sig"
SIGNING_KEY, TRUSTED_KEYS = "REDOUBT_SIGNING_KEY", "REDOUBT_TRUSTED_KEYS"


def new_keys(file: Path) -> Path:
    """Write a fresh private key to `file`, readable by its owner alone, and the public one to `file`.pub.

    Returns:
        The public key's file.

    Raises:
        InvalidInput: when one of the files is there already or cannot be written.
    """
    public = file.with_name(file.name + ".pub")
    key = Ed25519PrivateKey.generate()
    private_text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                     serialization.NoEncryption())
    public_text = key.public_key().public_bytes(serialization.Encoding.PEM,
                                                serialization.PublicFormat.SubjectPublicKeyInfo)
    try:
        for path, text, mode in ((file, private_text, 0o600), (public, public_text, 0o644)):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
                stream.write(text)
    except OSError as error:
        raise InvalidInput(f"{error.filename} cannot be written: {error.strerror}; no key is overwritten") from None
    return public


def private_key(file: Path | str) -> Ed25519PrivateKey:
    """The private key in `file`.

    Raises:
        InvalidInput: when it holds no Ed25519 private key.
    """
    return _load(file, lambda data: serialization.load_pem_private_key(data, password=None), Ed25519PrivateKey)


def sign(folder: Path, manifest: str, key_file: Path | str) -> None:
    """Sign `folder`/`manifest` with the private key in `key_file`, into `folder`/manifest.sig.

    Raises:
        InvalidInput: when the file holds no Ed25519 private key.
    """
    key = private_key(key_file)
    signature = key.sign((folder / manifest).read_bytes())
    note = {"algorithm": "ed25519", "key": key_id(key.public_key()), "signature": base64.b64encode(signature).decode()}
    (folder / SIGNATURE).write_text(json.dumps(note))


def verify(folder: Path, manifest: str, trusted: Sequence[Ed25519PublicKey]) -> str:
    """The id of the trusted key that signed the manifest in `folder`.

    Raises:
        ArtifactError: when none did.
    """
    try:
        note = json.loads((folder / SIGNATURE).read_text())
        signature = base64.b64decode(note["signature"], validate=True)
    except FileNotFoundError:
        raise ArtifactError(f"{folder} is not signed, and {TRUSTED_KEYS} asks for a signature") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / SIGNATURE} cannot be read ({error})") from None
    text = (folder / manifest).read_bytes()
    for key in trusted:
        try:
            key.verify(signature, text)
            return key_id(key)
        except InvalidSignature:
            continue
    known = ", ".join(map(key_id, trusted))
    raise ArtifactError(f"{folder}: none of the trusted keys ({known}) signed it, or the manifest was altered since")


def trusted_keys(files: Iterable[Path | str] | None = None) -> tuple[Ed25519PublicKey, ...]:
    """Public keys out of PEM files; by default out of those that REDOUBT_TRUSTED_KEYS, a JSON list, names.

    Args:
        files: a folder stands for every `.pub` in it.

    Raises:
        InvalidInput: when one holds no Ed25519 public key, or a folder no `.pub`.
    """
    if files is None:
        text = os.environ.get(TRUSTED_KEYS) or "[]"
        try:
            files = json.loads(text)
        except ValueError:
            files = None
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            raise InvalidInput(f'{TRUSTED_KEYS}={text!r}: write a JSON list such as ["redoubt.key.pub"]')
    return tuple(_load(file, serialization.load_pem_public_key, Ed25519PublicKey) for one in files
                 for file in _public_files(Path(one).expanduser()))


def _public_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.pub"))
    if not found:   # trusting nobody would mean that no signature is asked for
        raise InvalidInput(f"{TRUSTED_KEYS}: the folder {path} holds no .pub file")
    return found


def key_id(key: Ed25519PublicKey) -> str:
    """What a public key is called: the beginning of its sha256."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def _load(file: Path | str, read, kind):
    try:
        key = read(Path(file).expanduser().read_bytes())
    except OSError as error:
        raise InvalidInput(f"key {file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, kind):
        what = "private" if kind is Ed25519PrivateKey else "public"
        raise InvalidInput(f"{file} holds no Ed25519 {what} key: `redoubt keygen FILE` makes a pair")
    return key
