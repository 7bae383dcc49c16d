"""API keys: random, shown once, kept only as hashes, with a scope each.

A key carries 256 random bits, so that a plain SHA-256 of it cannot be searched; the slow hashes that passwords need
would only slow every request down.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from headstart.errors import SpecError

SCOPES = ("predict", "admin")
"""predict: ask models and read what they are. admin: that, and load and unload models."""

PREFIX = "hsk_"


@dataclass(frozen=True)
class Key:
    """What is kept of a key. name: for people and logs; sha256: of the whole key."""

    name: str
    scope: str
    sha256: str

    def may(self, scope: str) -> bool:
        """Whether it opens what needs this scope."""
        return self.scope == "admin" or self.scope == scope


def make(path: Path, name: str, scope: str) -> str:
    """Add a key to a file, which is made when it is not there; returns the key, which is not kept anywhere.

    Raises SpecError for an unknown scope, a name that is taken, or a file that is not one of keys.
    """
    if scope not in SCOPES:
        raise SpecError(f"expected the scope {' or '.join(SCOPES)}, received '{scope}'")
    if not name.strip():
        raise SpecError("a key needs a name, so that it can be found again when it is to go")
    kept = read(path) if path.exists() else []
    if any(key.name == name for key in kept):
        raise SpecError(f"'{path}' already has a key called '{name}': choose another name, or remove that one first")
    secret = PREFIX + secrets.token_urlsafe(32)
    _write(path, [*kept, Key(name, scope, _hash(secret))])
    return secret


def remove(path: Path, name: str) -> None:
    """Take a key away; a running server refuses it from its next request on. Raises SpecError for an unknown name."""
    kept = read(path)
    if all(key.name != name for key in kept):
        raise SpecError(f"'{path}' has no key called '{name}'; it has {', '.join(key.name for key in kept) or 'none'}")
    _write(path, [key for key in kept if key.name != name])


def read(path: Path) -> list[Key]:
    """The keys of a file. Raises SpecError for one that is missing or is not a file of keys."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        keys = [Key(str(entry["name"]), str(entry["scope"]), str(entry["sha256"])) for entry in record["keys"]]
    except OSError as error:
        raise SpecError(f"cannot read the keys in '{path}': {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise SpecError(
            f"'{path}' is not a file of API keys: make one with 'headstart key {path} --name NAME'"
        ) from None
    if any(key.scope not in SCOPES for key in keys):
        raise SpecError(f"'{path}' holds a key with an unknown scope: expected {' or '.join(SCOPES)}")
    return keys


def _write(path: Path, keys: list[Key]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump({"keys": [asdict(key) for key in keys]}, file, indent=2)
        file.write("\n")
    fresh.replace(path)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class Ring:
    """The keys of a running server, read again when their file changes."""

    def __init__(self, path: Path) -> None:
        """Raises SpecError for a file without keys."""
        self._path = path
        self._keys = read(path)
        self._stamp = self._look()
        if not self._keys:
            raise SpecError(f"'{path}' holds no keys: make one with 'headstart key {path} --name NAME'")

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def find(self, secret: str | None) -> Key | None:
        """Whose key this is. A file that was damaged or taken away since opens nothing."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keys = read(self._path)
            except SpecError:
                self._keys = []
        if not secret:
            return None
        digest = _hash(secret)
        # Every key is compared, in the same time whichever fits.
        fits = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        return fits[0] if fits else None
