"""Requests that no HTTP library would send: lengths that lie, headers that end nowhere."""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections.abc import Callable

import httpx

_TIMEOUT_S = 30.0
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")


class Hang(Exception):
    """Neither an answer nor the end of the connection came in time."""


def _head(path: str, *lines: str) -> bytes:
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", "")).encode(
        "latin-1"
    )


def _json(path: str, *lines: str) -> bytes:
    return _head(path, "Content-Type: application/json", *lines)


# From a path, a body and a chance: the bytes to send.
_WAYS: dict[str, Callable[[str, bytes, random.Random], bytes]] = {
    "length too long": lambda p, b, c: (
        _json(p, f"Content-Length: {len(b) + c.choice((1, 99))}") + b
    ),
    "length too short": lambda p, b, _: _json(p, f"Content-Length: {len(b) // 2}") + b,
    "length negative": lambda p, b, _: _json(p, "Content-Length: -1") + b,
    "length no number": lambda p, b, _: _json(p, "Content-Length: many") + b,
    "length huge": lambda p, b, _: _json(p, "Content-Length: 99999999999999999999") + b,
    "two lengths": lambda p, b, _: _json(p, f"Content-Length: {len(b)}", "Content-Length: 3") + b,
    "no length": lambda p, b, _: _json(p) + b,
    "chunks cut": lambda p, b, _: _json(p, "Transfer-Encoding: chunked") + b"ff\r\n" + b[:20],
    "chunks wrong": lambda p, b, _: _json(p, "Transfer-Encoding: chunked") + b"zz\r\n" + b,
    "chunks of 1": lambda p, b, _: (
        _json(p, "Transfer-Encoding: chunked")
        + b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in b[:2_000])
        + b"0\r\n\r\n"
    ),
    "length and chunks": lambda p, b, _: (
        _json(p, f"Content-Length: {len(b)}", "Transfer-Encoding: chunked") + b"0\r\n\r\n"
    ),
    "headers cut": lambda p, _b, c: _json(p, "X-A: b")[: c.randrange(5, 40)],
    "header huge": lambda p, b, _: (
        _json(p, "X-A: " + "a" * 100_000, f"Content-Length: {len(b)}") + b
    ),
    "headers many": lambda p, _b, _c: _json(p, *(f"X-{i}: a" for i in range(2_000))),
    "header with NUL": lambda p, b, _: _json(p, "X-A: a\0b", f"Content-Length: {len(b)}") + b,
    "expects 100": lambda p, b, _: (
        _json(p, "Expect: 100-continue", f"Content-Length: {len(b)}") + b
    ),
    "no method": lambda _p, b, _c: b + b"\r\n\r\n",
    "old HTTP": lambda p, _b, _c: f"GET {p}\r\n\r\n".encode(),
    "HTTP/9": lambda p, _b, _c: _json(p).replace(b"HTTP/1.1", b"HTTP/9.9"),
    "noise": lambda _p, _b, c: c.randbytes(2_000),
    "path broken": lambda _p, b, _c: _json("/v1/%ff%00\xff", f"Content-Length: {len(b)}") + b,
    "upgrade": lambda p, _b, _c: _json(p, "Connection: Upgrade", "Upgrade: websocket"),
}


def send_raw(url: str, path: str, body: bytes, chance: random.Random) -> tuple[str, list[int]]:
    """Send one such request, and no more; the way, and the statuses that came back.

    Raises:
        Hang: nothing came for 30 s, and the connection stayed open.
    """
    way = chance.choice(sorted(_WAYS))
    address = httpx.URL(url)
    received = b""
    with socket.create_connection((address.host, address.port or 80), timeout=_TIMEOUT_S) as raw:
        # Refused before all was sent: what has been answered can still be read.
        with contextlib.suppress(OSError):
            raw.sendall(_WAYS[way](path, body[:100_000], chance))
            raw.shutdown(socket.SHUT_WR)
        try:
            while part := raw.recv(65_536):
                received += part
        except TimeoutError:
            if not received:
                raise Hang(way) from None
        except ConnectionError:
            pass
    return way, [int(status) for status in _STATUS.findall(received)]
