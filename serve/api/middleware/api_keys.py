"""The keys that callers bring. Only digests are held, so that no key can leak from here.

Keys are random strings of some length, so a plain SHA-256 is enough: there is nothing to guess. For
the same reason wrong keys are not counted and slowed down: it would need a count for each source,
and behind a load balancer all clients are one source, which one of them could then lock out.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator
from pathlib import Path

from rm_core import ModelLoadError
from serve.api.middleware.trusted_hosts import is_loopback
from serve.config.settings import Settings

MIN_KEY_LENGTH = 8
SAFE_KEY_LENGTH = 16
"""Shorter ones are taken, with a warning: they may be words, and those can be guessed."""


class KeyRing:
    """Tells whether a key is known, and whose it is.

    Args:
        keys: the keys, each with where it stands, such as `line 3 of keys.txt`.

    Attributes:
        digests: SHA-256 of each key, hexadecimal: what another process needs for `of_digests`.
        short: where keys stand that are shorter than they should be.

    Raises:
        ModelLoadError: one is too short, or could not come in a header.
    """

    def __init__(self, keys: Iterable[tuple[str, str]] = ()) -> None:
        listed = [(_check_key(key, where), where) for key, where in keys]
        self.short_key_locations = tuple(
            where for key, where in listed if len(key) < SAFE_KEY_LENGTH
        )
        self._set_digests(_digest(key.encode()) for key, _ in listed)

    def _set_digests(self, digests: Iterable[str]) -> None:
        self.digests = tuple(dict.fromkeys(digests))
        self._names = {digest.encode(): _name(digest) for digest in self.digests}

    @classmethod
    def from_settings(cls, settings: Settings) -> KeyRing:
        """Every key of the settings and of the file that they name.

        Raises:
            ModelLoadError: the file cannot be read or has no key, or a key cannot be used.
        """
        keys = _get_inline_keys(settings)
        if settings.api_keys_file is not None:
            keys += _read_keys_file(Path(settings.api_keys_file))
        return cls(keys)

    @classmethod
    def from_inline_keys(cls, settings: Settings) -> KeyRing:
        """The keys that stand in the settings themselves.

        Raises:
            ModelLoadError: a key cannot be used.
        """
        return cls(_get_inline_keys(settings))

    @classmethod
    def from_digests(cls, digests: Iterable[str]) -> KeyRing:
        """The ring that has these digests."""
        ring = cls()
        ring._set_digests(digests)
        return ring

    def __len__(self) -> int:
        return len(self.digests)

    def find_name(self, key: bytes) -> str | None:
        """The name of a key in logs, which does not tell the key; None if it is not known.

        Takes the same time for every key, known or not.
        """
        digest = _digest(key).encode()
        found = None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def build_key_warnings(settings: Settings, keys: KeyRing) -> list[str]:
    """What an operator should know at the start of who may call, one line each."""
    found = []
    if not keys and not is_loopback(settings.host):
        found.append(
            f"WARNING: no API keys, and it listens on {settings.host}: everybody who reaches this "
            "machine can use the service; give keys (--api-keys FILE), or --host 127.0.0.1"
        )
    if keys.short_key_locations:
        found.append(
            f"WARNING: {', '.join(keys.short_key_locations)}: fewer than {SAFE_KEY_LENGTH} characters, which may "
            "be guessed; make one with: openssl rand -hex 32"
        )
    return found


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def _name(digest: str) -> str:
    # Of the digest of the digest: a part of the digest itself would help to check guesses.
    return "key-" + _digest(digest.encode())[:8]


def _check_key(key: str, where: str) -> str:
    if len(key) < MIN_KEY_LENGTH:
        raise ModelLoadError(
            f"{where} has {len(key)} characters and must have at least {MIN_KEY_LENGTH}; "
            "make one with: openssl rand -hex 32"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ModelLoadError(
            f"{where} has white space or characters other than printable ASCII, which a header "
            "cannot carry; make one with: openssl rand -hex 32"
        )
    return key


def _get_inline_keys(settings: Settings) -> list[tuple[str, str]]:
    return [
        (key.get_secret_value(), f"key {number} of `api_keys`")
        for number, key in enumerate(settings.api_keys, 1)
    ]


def _read_keys_file(file: Path) -> list[tuple[str, str]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:  # its text would show what is in the file
        raise ModelLoadError(
            f"the file of keys {file} is not UTF-8 text; save it as UTF-8, one key a line"
        ) from None
    except OSError as error:
        raise ModelLoadError(
            f"the file of keys {file} cannot be read: {error.strerror}; name another with "
            "--api-keys (setting `api_keys_file`), or make it readable"
        ) from None
    keys = [(line, f"line {number} of {file}") for number, line in _lines(text)]
    if not keys:
        raise ModelLoadError(
            f"the file of keys {file} has no key; write one a line, or leave --api-keys (setting "
            "`api_keys_file`) out to serve without keys"
        )
    return keys


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        key = line.strip()
        if key and not key.startswith("#"):
            yield number, key
