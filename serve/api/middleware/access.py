"""Who may use the service, and who may control models: trusted hosts and API keys.

A web page can make its own host name resolve to 127.0.0.1 (DNS rebinding); its scripts can then
read the responses of a service on the visitor's machine. Such a page cannot choose the header Host,
which contains the page's host name.

Of API keys, only digests are kept in memory, so that no key can leak from here. Keys are long
random strings, so a plain SHA-256 is enough: they cannot be guessed. For the same reason wrong keys
are not rate-limited. A limit would count attempts per source address, and behind a load balancer
all clients share one address: a single client could lock out all others.

Only some clients may put models to sleep, wake them and reload them: those with a key of
`admin_api_keys`. Without such keys, only clients on this machine may do it: the connection comes
from a loopback address, and not through another proxy. A web page that is open in a browser on this
machine is not such a client. Its requests carry the header Origin, and where its host name was made
to resolve to 127.0.0.1, a Host that is not a local name. These requests do not count as scoring
requests: they have no deadline, since reading the weights of a large model takes minutes.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rm_core import ModelLoadError, RewardError
from serve.api.error_responses import build_error_response, truncate_for_message
from serve.api.middleware.reject import send_rejection
from serve.api.playground.page import build_login_page, build_page_headers
from serve.config.settings import Settings
from serve.errors import AuthenticationError, MisdirectedRequestError, PermissionDeniedError
from serve.telemetry.logging import ANONYMOUS, current_request

MIN_KEY_LENGTH = 8
SAFE_KEY_LENGTH = 16
"""Shorter keys are accepted with a warning: they may be words, which can be guessed."""


OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""Paths that need no API key: load balancers and Prometheus, which read them, have none."""


COMPAT_LIFECYCLE_PATHS = frozenset(
    {
        "/sleep",
        "/wake_up",
        "/release_memory_occupation",
        "/resume_memory_occupation",
        "/update_weights_from_disk",
    }
)
"""Routes of other services that put models to sleep, wake them and reload them."""

LIFECYCLE_PATHS = {
    action: f"/v1/models/{{alias}}/{action}" for action in ("sleep", "wake", "reload")
}
"""Templates of the native lifecycle routes, by action."""

_LIFECYCLE_PATH = re.compile(rf"/v1/models/.+/({'|'.join(LIFECYCLE_PATHS)})")

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine in the header Host."""

AdminWithoutKey: TypeAlias = Literal["loopback", "all", "none"]
"""Who may use the lifecycle routes without a key: clients whose connection comes from a loopback
address; everyone who reaches the service, since it listens on a loopback address; or no one."""

_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


class TrustedHostMiddleware:
    """Rejects requests for other hosts, and websockets, which no route supports."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection, unless it is a websocket or for another host."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http":
            state = scope["app"].state
            try:
                check_host(scope["headers"], state.settings, with_keys=bool(state.keys))
            except MisdirectedRequestError as error:
                await send_rejection(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


def check_host(
    headers: Iterable[tuple[bytes, bytes]], settings: Settings, *, with_keys: bool
) -> None:
    """Reject a request whose Host header names another host.

    Without Host, the request is allowed: no browser sends it. A foreign web page has no API key.
    """
    allowed = _get_allowed_hosts(settings.host, settings.allowed_hosts, with_keys)
    if allowed is None:
        return
    for name, value in headers:
        if name == b"host" and strip_port(value.decode("latin-1")) not in allowed:
            raise MisdirectedRequestError(
                f"the request is for the host {truncate_for_message(value.decode('latin-1'))!r}, "
                f"and this service accepts requests for {', '.join(sorted(allowed))}; use one of "
                "these, or add your host to the service's setting `allowed_hosts`"
            )


def is_loopback(host: str) -> bool:
    """Return whether an address is a loopback address; names are not resolved."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return _normalize_name(host) == "localhost"


@functools.lru_cache
def _get_allowed_hosts(host: str, more: tuple[str, ...], with_keys: bool) -> frozenset[str] | None:
    """Return the allowed host names; None if every host is allowed."""
    if "*" in more or (not more and (with_keys or not is_loopback(host))):
        return None
    own = f"[{host}]" if ":" in host else host
    return frozenset(_normalize_name(name) for name in (*LOCAL_NAMES, own, *more))


def strip_port(header: str) -> str:
    """Return the host name of a Host header, in lower case."""
    host, colon, port = header.strip().rpartition(":")
    return _normalize_name(host if colon and "]" not in port else header.strip())


def _normalize_name(name: str) -> str:
    # A trailing dot marks a fully qualified name, which is the same host.
    return name.lower().removesuffix(".")


class ApiKeyMiddleware:
    """Requires an API key when keys are configured; browsers get a login page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection, unless its API key is missing or wrong."""
        if scope["type"] == "http":
            state = scope["app"].state
            try:
                if find_lifecycle_route(scope) is not None:
                    current_request().client = authorize(scope)
                elif state.keys and not _is_open(scope):
                    current_request().client = authenticate(scope, state.keys, state.admin_keys)
            except (AuthenticationError, PermissionDeniedError) as error:
                page = _build_login_response(error, scope) if _asks_for_page(scope) else None
                await send_rejection(error, scope, receive, send, page=page)
                return
        await self._app(scope, receive, send)


def find_lifecycle_route(scope: Scope) -> str | None:
    """Return the template of the lifecycle route that a request is for; None if it is for none."""
    if scope["method"] != "POST":
        return None
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    if path in COMPAT_LIFECYCLE_PATHS:
        return path
    match = _LIFECYCLE_PATH.fullmatch(path)
    return LIFECYCLE_PATHS[match[1]] if match else None


def _is_open(scope: Scope) -> bool:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return path in OPEN_PATHS and scope["method"] in ("GET", "HEAD")


def _asks_for_page(scope: Scope) -> bool:
    """Return whether a browser, or the login page, requests the playground."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    wants_html = "text/html" in Headers(scope=scope).get("accept", "")
    return path == "/" and scope["method"] == "GET" and wants_html


def _build_login_response(error: RewardError, scope: Scope) -> Response:
    json_response = build_error_response(error, scope)
    challenge = {"WWW-Authenticate": json_response.headers["WWW-Authenticate"]}
    return Response(
        build_login_page(), json_response.status_code, {**challenge, **build_page_headers()}
    )


def authenticate(scope: Scope, *rings: KeyRing) -> str:
    """Return the name of the key of a request, which one of the key rings has to know."""
    key = get_sent_key(scope)
    names = [ring.find_name(key) for ring in rings]  # all of them: takes the same time for each key
    name = next(filter(None, names), None)
    if name is None:
        raise AuthenticationError("the API key is wrong; ask the operator for one")
    return name


def authorize(scope: Scope) -> str:
    """Return the client's name if it may use the lifecycle routes."""
    state = scope["app"].state
    if "authorization" in Headers(scope=scope) and (
        name := state.admin_keys.find_name(get_sent_key(scope))
    ):
        return str(name)
    client = authenticate(scope, state.keys) if state.keys else ANONYMOUS
    if state.admin_without_key == "none":
        if client == ANONYMOUS:
            raise AuthenticationError(
                "this route needs a key of the service's setting `admin_api_keys`; send "
                "Authorization: Bearer KEY"
            )
        raise PermissionDeniedError(
            "this key may score, but not control models; send a key of the service's setting "
            "`admin_api_keys`"
        )
    if reason := _find_foreign_sign(scope, state.admin_without_key):
        raise PermissionDeniedError(
            f"{reason}, and without `admin_api_keys` only clients on the service's machine may "
            "control models; set `admin_api_keys`, and send one of these keys"
        )
    return client


def _find_foreign_sign(scope: Scope, allowed: AdminWithoutKey) -> str | None:
    """Return a reason why the client may not be on this machine; None if it is."""
    headers = Headers(scope=scope)
    peer = scope["client"][0] if scope.get("client") else ""
    if allowed == "loopback" and not is_loopback(peer):
        return "the request comes from another machine"
    if header := next((name for name in _FORWARDED if name in headers), None):
        return f"the request came through a proxy (header {header})"
    host = headers.get("host", "")
    if strip_port(host) not in LOCAL_NAMES:
        return "the header Host is not localhost, 127.0.0.1 or [::1]"
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return "the request comes from a web page of another site"
    return None


def get_sent_key(scope: Scope) -> bytes:
    """Return the API key of a request."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    if not values:
        raise AuthenticationError("the API key is missing; send Authorization: Bearer KEY")
    scheme, _, key = values[0].partition(b" ")
    if len(values) > 1 or scheme.lower() != b"bearer":
        raise AuthenticationError("send the API key as one header Authorization: Bearer KEY")
    return bytes(key.strip())


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
    def from_settings(
        cls, settings: Settings, *, admin: bool = False, with_file: bool = True
    ) -> KeyRing:
        """Create a key ring from the keys in the settings, and in the key file that they name.

        With `admin`, these are the keys that may control models.
        """
        setting = "admin_api_keys" if admin else "api_keys"
        listed: Sequence[SecretStr] = getattr(settings, setting)
        keys = [
            (key.get_secret_value(), f"key {number} of `{setting}`")
            for number, key in enumerate(listed, 1)
        ]
        file: str | None = getattr(settings, f"{setting}_file")
        if with_file and file is not None:
            keys += _read_keys_file(f"{setting}_file", Path(file))
        return cls(keys)

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


def build_key_warnings(settings: Settings, keys: KeyRing, admin_keys: KeyRing) -> list[str]:
    """Return warnings about missing and weak API keys, one line each, for the operator."""
    warnings = []
    if not keys and not is_loopback(settings.host):
        warnings.append(
            f"WARNING: no API keys are configured, and the service listens on {settings.host}: "
            "everyone who can reach this machine can use the service; configure keys "
            "(--api-keys FILE), or listen on --host 127.0.0.1"
        )
    if locations := (*keys.short_key_locations, *admin_keys.short_key_locations):
        warnings.append(
            f"WARNING: {', '.join(locations)}: fewer than {SAFE_KEY_LENGTH} "
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


def _read_keys_file(setting: str, file: Path) -> list[tuple[str, str]]:
    option = "--" + setting.removesuffix("_file").replace("_", "-")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:  # its message would show content of the file
        raise ModelLoadError(
            f"the key file {file} is not UTF-8 text; save it as UTF-8, one key per line"
        ) from None
    except OSError as error:
        raise ModelLoadError(
            f"the key file {file} cannot be read: {error.strerror}; name another file with "
            f"{option} (setting `{setting}`), or make it readable"
        ) from None
    keys = [(line, f"line {number} of {file}") for number, line in _lines(text)]
    if not keys:
        raise ModelLoadError(
            f"the key file {file} has no key; write one key per line, or omit {option} (setting "
            f"`{setting}`)"
        )
    return keys


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        key = line.strip()
        if key and not key.startswith("#"):
            yield number, key
