"""API keys. Only digests are kept in memory, so that no key can leak from here.

Keys are long random strings, so a plain SHA-256 is enough: they cannot be guessed. For the same
reason wrong keys are not rate-limited. A limit would count attempts per source address, and behind
a load balancer all clients share one address: a single client could lock out all others.
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
"""Shorter keys are accepted with a warning: they may be words, which can be guessed."""


class KeyRing:
    """Checks API keys, and names them for logs.

    Args:
        keys: each key with its location, such as `line 3 of keys.txt`.

    Attributes:
        digests: hexadecimal SHA-256 of each key: the input of `from_digests` in another process.
        short_key_locations: locations of keys shorter than `SAFE_KEY_LENGTH`.

    Raises:
        ModelLoadError: a key is too short, or cannot be sent in a header.
    """

    def __init__(self, keys: Iterable[tuple[str, str]] = ()) -> None:
        checked = [(_check_key(key, location), location) for key, location in keys]
        self.short_key_locations = tuple(
            location for key, location in checked if len(key) < SAFE_KEY_LENGTH
        )
        self._set_digests(_digest(key.encode()) for key, _ in checked)

    def _set_digests(self, digests: Iterable[str]) -> None:
        self.digests = tuple(dict.fromkeys(digests))
        self._names = {digest.encode(): _name(digest) for digest in self.digests}

    @classmethod
    def from_settings(cls, settings: Settings) -> KeyRing:
        """Create a key ring from the keys in the settings and in the key file that they name.

        Raises:
            ModelLoadError: the file cannot be read or has no key, or a key cannot be used.
        """
        keys = _get_inline_keys(settings)
        if settings.api_keys_file is not None:
            keys += _read_keys_file(Path(settings.api_keys_file))
        return cls(keys)

    @classmethod
    def from_inline_keys(cls, settings: Settings) -> KeyRing:
        """Create a key ring from the keys in the settings, without the key file.

        Raises:
            ModelLoadError: a key cannot be used.
        """
        return cls(_get_inline_keys(settings))

    @classmethod
    def from_digests(cls, digests: Iterable[str]) -> KeyRing:
        """Create a key ring from the digests of another key ring."""
        ring = cls()
        ring._set_digests(digests)
        return ring

    def __len__(self) -> int:
        return len(self.digests)

    def find_name(self, key: bytes) -> str | None:
        """Return the name of a key for logs, which does not reveal the key; None if unknown.

        Takes the same time for every key, known or not.
        """
        digest = _digest(key).encode()
        matching_name = None
        for known_digest, name in self._names.items():
            if hmac.compare_digest(known_digest, digest):
                matching_name = name
        return matching_name


def build_key_warnings(settings: Settings, keys: KeyRing) -> list[str]:
    """Return warnings about missing and weak API keys, one line each, for the operator."""
    warnings = []
    if not keys and not is_loopback(settings.host):
        warnings.append(
            f"WARNING: no API keys are configured, and the service listens on {settings.host}: "
            "everyone who can reach this machine can use the service; configure keys "
            "(--api-keys FILE), or listen on --host 127.0.0.1"
        )
    if keys.short_key_locations:
        warnings.append(
            f"WARNING: {', '.join(keys.short_key_locations)}: fewer than {SAFE_KEY_LENGTH} "
            "characters, which may be guessed; generate a key with: openssl rand -hex 32"
        )
    return warnings


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def _name(digest: str) -> str:
    # From the digest of the digest: a prefix of the digest itself would help to check guesses.
    return "key-" + _digest(digest.encode())[:8]


def _check_key(key: str, location: str) -> str:
    if len(key) < MIN_KEY_LENGTH:
        raise ModelLoadError(
            f"{location} has {len(key)} characters and must have at least {MIN_KEY_LENGTH}; "
            "generate a key with: openssl rand -hex 32"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ModelLoadError(
            f"{location} has white space or characters other than printable ASCII, which a header "
            "cannot carry; generate a key with: openssl rand -hex 32"
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
    except UnicodeDecodeError:  # its message would show content of the file
        raise ModelLoadError(
            f"the key file {file} is not UTF-8 text; save it as UTF-8, one key per line"
        ) from None
    except OSError as error:
        raise ModelLoadError(
            f"the key file {file} cannot be read: {error.strerror}; name another file with "
            "--api-keys (setting `api_keys_file`), or make it readable"
        ) from None
    keys = [(line, f"line {number} of {file}") for number, line in _lines(text)]
    if not keys:
        raise ModelLoadError(
            f"the key file {file} has no key; write one key per line, or omit --api-keys (setting "
            "`api_keys_file`) to serve without keys"
        )
    return keys


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        key = line.strip()
        if key and not key.startswith("#"):
            yield number, key
