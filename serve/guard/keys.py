"""The keys that callers bring. Only digests are held, so that no key can leak from here.

Keys are random strings of some length, so a plain SHA-256 is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator
from pathlib import Path

from rm_core import ModelLoadError
from serve.settings import Settings

MIN_KEY_LENGTH = 8


class KeyRing:
    """Tells whether a key is known, and whose it is.

    Args:
        keys: the keys, each with where it stands, such as `line 3 of keys.txt`.

    Attributes:
        digests: SHA-256 of each key, hexadecimal: what another process needs for `of_digests`.

    Raises:
        ModelLoadError: one is too short, or could not come in a header.
    """

    def __init__(self, keys: Iterable[tuple[str, str]] = ()) -> None:
        self._hold(_digest(_checked(key, where).encode()) for key, where in keys)

    def _hold(self, digests: Iterable[str]) -> None:
        self.digests = tuple(dict.fromkeys(digests))
        self._names = {digest.encode(): _name(digest) for digest in self.digests}

    @classmethod
    def of(cls, settings: Settings) -> KeyRing:
        """Every key of the settings and of the file that they name.

        Raises:
            ModelLoadError: the file cannot be read or has no key, or a key cannot be used.
        """
        keys = _listed(settings)
        if settings.api_keys_file is not None:
            keys += _keys_in(Path(settings.api_keys_file))
        return cls(keys)

    @classmethod
    def of_listed(cls, settings: Settings) -> KeyRing:
        """The keys that stand in the settings themselves.

        Raises:
            ModelLoadError: a key cannot be used.
        """
        return cls(_listed(settings))

    @classmethod
    def of_digests(cls, digests: Iterable[str]) -> KeyRing:
        """The ring that has these digests."""
        ring = cls()
        ring._hold(digests)
        return ring

    def __len__(self) -> int:
        return len(self.digests)

    def name_of(self, key: bytes) -> str | None:
        """The name of a key in logs, which does not tell the key; None if it is not known.

        Takes the same time for every key, known or not.
        """
        digest = _digest(key).encode()
        found = None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def _name(digest: str) -> str:
    # Of the digest of the digest: a part of the digest itself would help to check guesses.
    return "key-" + _digest(digest.encode())[:8]


def _checked(key: str, where: str) -> str:
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


def _listed(settings: Settings) -> list[tuple[str, str]]:
    return [
        (key.get_secret_value(), f"key {number} of `api_keys`")
        for number, key in enumerate(settings.api_keys, 1)
    ]


def _keys_in(file: Path) -> list[tuple[str, str]]:
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
