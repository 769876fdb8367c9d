"""Limits on connections in uvicorn: heads, chunk framing, and the number of connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest
import uvicorn
from certificates import write_certificate
from middleware_harness import (
    Harness,
    Server,
    create_harness,
    live,
    post,
    read_all,
    read_response,
    unread,
)
from uvicorn.config import HTTP_PROTOCOLS
from waiting import PATIENCE_S, until

from serve.api.middleware.connections import (
    HEAD_TIMEOUT_S,
    MAX_HEAD_BYTES,
    BoundedConnection,
    ConnectionLimits,
)
from serve.api.middleware.ray_proxy import middlewares

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"POST /size HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
CHUNKED += b"Content-Type: application/json\r\n\r\n"
ENDLESS_BYTES = 2**20
"""Number of bytes that a test sends in place of an endless stream."""


@pytest.fixture
def _expected_parser_rejections() -> Iterator[None]:
    """Suppresses uvicorn's log line about requests that its parser rejects."""
    logger = logging.getLogger("uvicorn.error")

    def is_other(record: logging.LogRecord) -> bool:
        return record.getMessage() != "Invalid HTTP request received."

    logger.addFilter(is_other)
    yield
    logger.removeFilter(is_other)


Opened: TypeAlias = tuple[Server, Callable[[], socket.socket]]


@contextlib.contextmanager
def serving(scheme: str, folder: Path) -> Iterator[Opened]:
    """A server, and how a test connects to it."""
    if scheme == "http":
        with live(create_harness().app) as server:
            yield server, server.connect
        return
    cert, key = write_certificate(folder)
    trust = ssl.create_default_context(cafile=str(cert))
    with live(create_harness().app, ssl_certfile=cert, ssl_keyfile=key) as server:
        yield server, lambda: trust.wrap_socket(server.connect(), server_hostname="127.0.0.1")


@pytest.fixture(params=["http", "https"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    with serving(request.param, tmp_path) as found:
        yield found


def send_endlessly(connection: socket.socket, start: bytes, piece: bytes) -> None:
    """Send without an end, until the server accepts no more."""
    with contextlib.suppress(OSError):
        connection.sendall(start)
        for _ in range(ENDLESS_BYTES // len(piece)):
            connection.sendall(piece)


def parse_error(answer: bytes) -> tuple[int, str]:
    """Status and code of a response in the native error format."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert f"content-length: {len(body)}".encode() in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"GET /health HTTP/1.1\r\nX: ", b"a" * 65_536),
        (b"GET /health HTTP/1.1\r\n", b"X: a\r\n" * 8_192),
        (b"GET /", b"a" * 65_536),
        (b"", b"\r\n" * 32_768),
        (CHUNKED + b"0\r\nX: ", b"a" * 65_536),
        (CHUNKED + b"0\r\n", b"X: a\r\n" * 8_192),
        (CHUNKED + b"1;", b"a" * 65_536),
    ],
    ids=["header", "headers", "path", "blank lines", "trailer", "trailers", "chunk extension"],
)
def test_endless_head_is_431(opened: Opened, start: bytes, piece: bytes) -> None:
    _, connect = opened
    with connect() as connection:
        send_endlessly(connection, start, piece)
        answer = read_response(connection)
    assert answer[0].status == 431
    assert json.loads(answer[1])["error"]["code"] == "head_too_large"


@pytest.mark.usefixtures("_expected_parser_rejections")
@pytest.mark.parametrize("sends", [1, 40])
def test_complete_head_above_limit_is_431(sends: int) -> None:
    fits = GET[:-2] + b"X: %s\r\n\r\n" % (b"a" * (MAX_HEAD_BYTES - 100))
    too_large = b"GET /health HTTP/1.1\r\nX: %s\r\n\r\n" % (b"a" * MAX_HEAD_BYTES)
    with live(create_harness().app) as server:
        for request, status in ((fits, 200), (too_large, 431)):
            with server.connect() as connection:
                size = len(request) // sends + 1
                for at in range(0, len(request), size):
                    connection.sendall(request[at : at + size])
                assert read_response(connection)[0].status == status


def test_late_head_is_408(opened: Opened) -> None:
    server, connect = opened
    with connect() as first, connect() as kept, connect() as silent:
        first.sendall(GET[:-2])
        kept.sendall(GET)
        assert read_response(kept)[0].status == 200
        kept.sendall(GET[:-2])
        until_seen(server, True, True, False)
        server.loop.advance(31)
        assert parse_error(read_all(first)) == (408, "request_timeout")
        assert parse_error(read_all(kept)) == (408, "request_timeout")
        # The client would read an error as the response to its first request.
        assert read_all(silent) == b""


def until_seen(server: Server, *unread: bool) -> None:
    """Wait for these connections; True for a connection with an incomplete head."""
    until(lambda: sorted(c.is_in_head() for c in server.connections) == sorted(unread))


def test_head_timeout_does_not_apply_to_body() -> None:
    harness = create_harness(body_timeout_s=3_000, request_timeout_s=3_000, min_body_rate=0)
    with live(harness.app) as server, server.connect() as connection:
        connection.sendall(post("/size", body=b"12", length=4))
        until(lambda: harness.admission.num_bytes == 2)
        server.loop.advance(1_000)
        connection.sendall(b"34")
        assert read_response(connection)[1] == b"4"


def test_chunk_framing_does_not_count_toward_head_limit() -> None:
    body = b"".join(b"1\r\n1\r\n" for _ in range(MAX_HEAD_BYTES))
    with live(create_harness().app) as server, server.connect() as connection:
        connection.sendall(CHUNKED + body + b"0\r\n\r\n")
        assert read_response(connection)[1] == b"%d" % MAX_HEAD_BYTES


def test_pipelined_requests_in_one_write_are_answered_in_order() -> None:
    body = b"1" * (2 * MAX_HEAD_BYTES)
    last = b"GET /other HTTP/1.1\r\nConnection: close\r\n\r\n"
    with live(create_harness().app) as server, server.connect() as connection:
        connection.sendall(post("/size", body=body) + GET + post("/size", body=b"22") + last[:-2])
        until_seen(server, True)
        connection.sendall(last[-2:])
        answers = read_all(connection).split(b"HTTP/1.1 200 OK\r\n")[1:]
    found = [answer.partition(b"\r\n\r\n")[2] for answer in answers]
    assert found == [b"%d" % len(body), b'"fine"', b"2", b'"fine"']


def test_disconnect_cancels_all_pipelined_requests() -> None:
    harness = create_harness()
    with live(harness.app) as server:
        with server.connect() as connection:
            connection.sendall(post("/wait", body=b"1") + post("/wait", body=b"2"))
            until(lambda: harness.started == ["1"])
        until(lambda: harness.cancelled == ["1"])
        harness.wait_until_free()
        assert harness.started == ["1"]


UPGRADE = b"Connection: keep-alive, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"


@pytest.mark.parametrize("is_cut", [False, True])
def test_http2_upgrade_request_is_answered_in_http1(is_cut: bool) -> None:
    """With its body, and with the requests that follow it, as Java's client sends them."""
    first = post("/size", UPGRADE[:-2], body=b"1234")
    rest = GET[:-2] + UPGRADE + b"\r\n" + post("/size", UPGRADE[:-2], body=b"22")
    rest += GET[:-2] + b"Connection: close\r\n\r\n"
    pieces = [first[:-2], first[-2:], rest] if is_cut else [first + rest]
    with live(create_harness().app) as server, server.connect() as connection:
        for number, piece in enumerate(pieces):
            connection.sendall(piece)
            if number < len(pieces) - 1:
                until(lambda: [c.cycle is not None for c in server.connections] == [True])
        answers = read_all(connection).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert [answer.partition(b"\r\n\r\n")[2] for answer in answers] == [
        b"4", b'"fine"', b"2", b'"fine"',
    ]  # fmt: skip


def test_many_pipelined_upgrade_requests_are_answered() -> None:
    many = GET[:-2] + UPGRADE + b"\r\n"
    with live(create_harness().app) as server, server.connect() as connection:
        connection.sendall(many * 3_000 + GET[:-2] + b"Connection: close\r\n\r\n")
        assert read_all(connection).count(b'"fine"') == 3_001


@pytest.mark.usefixtures("_expected_parser_rejections")
def test_invalid_http_gets_native_error() -> None:
    with live(create_harness().app) as server, server.connect() as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert parse_error(read_all(connection)) == (400, "bad_request")


@pytest.mark.usefixtures("_expected_parser_rejections")
@pytest.mark.parametrize("rest", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 300_000])
def test_invalid_data_after_request_does_not_break_response(rest: bytes) -> None:
    harness = create_harness()
    answer_now = threading.Event()
    harness.between_chunks = partial(asyncio.to_thread, answer_now.wait, PATIENCE_S)
    with live(harness.app) as server, server.connect() as connection:
        connection.sendall(post("/slowly") + rest)
        until(lambda: [c._is_rejected for c in server.connections] == [True])
        answer_now.set()
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"5\r\nthree\r\n0\r\n\r\n")


def busy(harness: Harness, server: Server, number: int) -> list[socket.socket]:
    """Open connections with running requests."""
    connections = [server.connect() for _ in range(number)]
    for connection in connections:
        connection.sendall(post("/wait"))
    until(lambda: len(harness.started) == number)
    return connections


def test_longest_idle_connection_is_closed_for_new_one() -> None:
    harness = create_harness()
    with live(harness.app, ConnectionLimits(max_connections=4)) as server:
        working = busy(harness, server, 2)
        idle = [server.connect() for _ in range(3)]
        assert read_all(idle[0]) == b""
        for connection in idle[1:]:
            connection.sendall(GET)
            assert read_response(connection)[1] == b'"fine"'
        # Of two idle connections, the one that became idle first is closed.
        with server.connect() as new:
            new.sendall(GET)
            assert read_response(new)[1] == b'"fine"'
        assert read_all(idle[1]) == b""
        for connection in (*working, *idle):
            connection.close()


def test_busy_connections_are_not_closed_for_new_one() -> None:
    harness = create_harness()
    with live(harness.app, ConnectionLimits(max_connections=2)) as server:
        working = busy(harness, server, 2)
        with server.connect() as new:
            answer = read_all(new)
        assert b"Retry-After: 5" in answer
        assert parse_error(answer) == (503, "too_many_connections")
        for connection in working:
            connection.settimeout(0)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
            connection.close()


@pytest.mark.parametrize("last", [GET, b"GET /health HTTP/1.0\r\n\r\n"])
def test_unread_end_of_response_is_dropped_after_timeout(last: bytes) -> None:
    """The end is so short that the server has nothing more to send, and waits for nothing."""
    with live(create_harness().app) as server, unread(server, GET) as connection:
        until(lambda: len(server.connections) == 1)
        [served] = server.connections
        server_socket = served.transport.get_extra_info("socket")
        server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the minimum
        while not served.transport.get_write_buffer_size():
            before = served.cycle
            connection.sendall(GET)
            until(lambda: served.cycle is not before and served.cycle.response_complete)  # noqa: B023
        connection.sendall(last)

        def is_given_up() -> bool:
            server.loop.advance(HEAD_TIMEOUT_S + 1)  # repeated: one timeout follows another
            return not server.connections

        until(is_given_up)
        with pytest.raises(ConnectionResetError):  # the operating system drops its buffer too
            read_all(connection)


def test_late_read_end_of_response_arrives() -> None:
    with live(create_harness().app) as server, unread(server, GET * 2_000) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        server.loop.advance(1)
        assert read_all(connection).count(b'"fine"') == 2_001


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_half_open_connections_do_not_delay_shutdown(scheme: str, tmp_path: Path) -> None:
    # The server has to shut down before this side closes the connections.
    with contextlib.ExitStack() as stack, serving(scheme, tmp_path) as (server, connect):
        for start in (b"", GET[:-2], CHUNKED[:9]):
            stack.enter_context(connect()).sendall(start)
        until_seen(server, True, True, False)


def test_default_max_connections_leaves_file_descriptors_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _kind: (300, 300))
    assert ConnectionLimits().max_connections == 225


def test_serve_proxies_use_bounded_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve uses uvicorn's default protocol, in the process in which it calls `middlewares`."""
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    assert middlewares()
    config = uvicorn.Config(lambda: None, factory=True, log_config=None, lifespan="off")
    config.load()
    assert config.http_protocol_class is BoundedConnection
