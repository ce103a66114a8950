"""API keys: made here, kept as hashes in one file, looked up without telling by its time how close a guess was.

A key is `rdb_<id>_<secret>`. The id finds the entry, the secret's SHA-256 must match: with 256 random bits there is
nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from redoubt.errors import InvalidInput

log = logging.getLogger("redoubt.serving")
PREFIX = "rdb"
ROLES = {
    "predict": "ask for predictions",
    "feedback": "send labels",
    "read": "see status, metrics and history",
    "operate": "see them, and change what runs",
    "admin": "everything",
}
_NOBODY = hashlib.sha256(b"nobody").hexdigest()
_LOOK_SECONDS = 1.0   # between two looks at the file: a revoked key ends within that time


@dataclass(frozen=True, kw_only=True)
class Key:
    """One entry.

    Attributes:
        id: public part of the key, and what the audit log shows.
        name: whose it is; shown as the principal.
        roles: what it may do.
        hash: SHA-256 of the secret part, in hexadecimal.
        created_at, expires_at: unix seconds; None never expires.
        rate: requests a second; None for the server's setting.
    """

    id: str
    name: str
    roles: tuple[str, ...]
    hash: str
    created_at: float
    expires_at: float | None = None
    rate: float | None = None

    def __post_init__(self):
        unknown = [role for role in self.roles if role not in ROLES]
        if unknown or not self.roles:
            raise InvalidInput(f"roles are some of {', '.join(ROLES)}, not {', '.join(unknown) or 'none'}")
        if not self.name or len(self.name) > 100 or not self.name.isprintable():
            raise InvalidInput("a key needs a printable name of at most 100 characters")


def new_key(
    name: str, roles: tuple[str, ...], *, expires_at: float | None = None, rate: float | None = None
) -> tuple[str, Key]:
    """A fresh key: what its owner gets, once, and the entry that is kept."""
    identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    entry = Key(
        id=identity, name=name, roles=tuple(roles), hash=_digest(secret), created_at=time.time(),
        expires_at=expires_at, rate=rate,
    )
    return f"{PREFIX}_{identity}_{secret}", entry


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class KeyStore:
    """The file of keys; changes to it are taken up while the server runs. Safe to use from every thread."""

    def __init__(self, file: Path):
        self.file = file
        self._lock = threading.Lock()
        self._stamp: tuple | None = None
        self._looked_at = 0.0
        self._keys: dict[str, Key] = {}
        if file.exists():
            self._keys, self._stamp = _read(file), _stamp(file)

    def __len__(self) -> int:
        """How many there are now."""
        self._refresh()
        return len(self._keys)

    def entries(self) -> list[Key]:
        """All of them, oldest first."""
        return sorted(self._keys.values(), key=lambda key: key.created_at)

    def find(self, token: str) -> Key | None:
        """The entry of a key that is valid now."""
        self._refresh()
        parts = token.split("_", 2)
        identity, secret = (parts[1], parts[2]) if len(parts) == 3 and parts[0] == PREFIX else ("", "")
        entry = self._keys.get(identity)
        same = hmac.compare_digest(_digest(secret), entry.hash if entry else _NOBODY)
        if entry is None or not same or (entry.expires_at is not None and time.time() >= entry.expires_at):
            return None
        return entry

    def add(self, entry: Key) -> None:
        """Keep a new key.

        Raises:
            InvalidInput: when the file cannot be written.
        """
        with self._lock:
            keys = (_read(self.file) if self.file.exists() else {}) | {entry.id: entry}
            self._write(keys)

    def revoke(self, identity: str) -> Key:
        """Take a key away.

        Raises:
            InvalidInput: when there is none with this id.
        """
        with self._lock:
            keys = _read(self.file) if self.file.exists() else {}
            if identity not in keys:
                raise InvalidInput(f"{self.file} has no key {identity!r}: `keys list` shows them")
            entry = keys.pop(identity)
            self._write(keys)
            return entry

    def _write(self, keys: dict[str, Key]) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # Readable by its owner alone from its first byte, and never half there.
            handle, temporary = tempfile.mkstemp(dir=self.file.parent, prefix=".keys-")
            with os.fdopen(handle, "w") as out:
                json.dump({"keys": [asdict(key) for key in keys.values()]}, out, indent=1)
            Path(temporary).replace(self.file)
        except OSError as error:
            raise InvalidInput(f"{self.file} cannot be written: {error.strerror}") from None
        self._keys, self._stamp = keys, _stamp(self.file)

    def _refresh(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < _LOOK_SECONDS:
            return
        with self._lock:
            self._looked_at = now
            stamp = _stamp(self.file)
            if stamp == self._stamp:
                return
            try:
                # A file that is gone takes every key with it: nobody gets in, rather than everybody.
                self._keys = _read(self.file) if stamp else {}
                self._stamp = stamp
            except InvalidInput as error:
                log.error("keys: %s; those read before stay in force", error)


def _stamp(file: Path) -> tuple | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(file: Path) -> dict[str, Key]:
    try:
        rows = json.loads(file.read_text())["keys"]
        names = {field.name for field in fields(Key)}
        keys = [Key(**{k: v for k, v in row.items() if k in names} | {"roles": tuple(row["roles"])}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"the keys in {file} cannot be read ({type(error).__name__}: {error})") from None
    return {key.id: key for key in keys}
