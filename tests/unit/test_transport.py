"""The middleware in a real server: chunked and stalled bodies, slow and disconnected clients."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse

import pytest
from middleware_harness import (
    JSON,
    KEY,
    LARGE,
    OTHER_KEY,
    create_harness,
    live,
    post,
    read_all,
    read_response,
    unread,
)
from waiting import advance, settle, until

from serve.api.middleware.connections import MIN_PROGRESS_BYTES

JSON_TYPE = {"Content-Type": "application/json"}
CHUNKED = (
    b"POST /size HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_chunked_body_is_assembled() -> None:
    harness = create_harness()
    with live(harness.app) as server, server.connect() as connection:
        connection.sendall(CHUNKED)
        for number in range(1, 4):
            connection.sendall(chunk(b'"abc"'))
            until(lambda: harness.admission.num_bytes == 5 * number)  # noqa: B023
        connection.sendall(chunk(b""))
        response, body = read_response(connection)
        assert (response.status, body) == (200, b"15")
        harness.wait_until_free()


def test_chunked_body_above_limit_is_413() -> None:
    harness = create_harness(max_body_bytes=1_000)
    with live(harness.app) as server, server.connect() as connection:
        connection.sendall(CHUNKED)
        for _ in range(11):
            connection.sendall(chunk(b" " * 100))
        # The rest is still read for some seconds, so that the client receives the response.
        for _ in range(50):
            connection.sendall(chunk(b" " * 10_000))
        connection.sendall(chunk(b""))
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert b'"body_too_large"' in answer
    harness.wait_until_free()


def test_content_length_above_limit_is_413_before_body_is_read() -> None:
    harness = create_harness(max_body_bytes=1_000)
    with live(harness.app) as server:
        with server.connect() as connection:
            # The body is never sent, so the response cannot have waited for it.
            connection.sendall(post("/size", b"Expect: 100-continue", length=10**9))
            answer = read_all(connection)
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert b"100 Continue" not in answer
        # httpx sends the whole body before it reads.
        with server.client() as client:
            answer = client.post("/size", content=b" " * 20_000_000, headers=JSON_TYPE)
        assert answer.status_code == 413


def test_stalled_body_is_408() -> None:
    harness = create_harness(
        body_timeout_s=1_000, request_timeout_s=3_000, max_requests=1, min_body_rate=0
    )
    with live(harness.app) as server, server.connect() as slow, server.client() as client:
        slow.sendall(post("/size", body=b"12", length=10))
        until(lambda: harness.admission.num_bytes == 2)
        # The stalled body uses bytes, but no slot of a running request.
        assert client.post("/size", json=1).status_code == 200
        server.loop.advance(1_001)
        response, body = read_response(slow)
        assert response.status == 408
        assert b'"body_timeout"' in body
        assert b"only 2 bytes of the body arrived in 1000 s" in body
        harness.wait_until_free()


def test_slow_body_within_timeout_is_accepted() -> None:
    harness = create_harness(
        body_timeout_s=10_000,
        request_timeout_s=20_000,
        max_request_timeout_s=20_000,
        min_body_rate=0,
    )
    with live(harness.app) as server, server.connect() as connection:
        connection.sendall(post("/size", length=5))
        for number, byte in enumerate(b"12345"):
            until(lambda: harness.admission.num_bytes == number)  # noqa: B023
            server.loop.advance(1_900)
            connection.sendall(bytes([byte]))
        response, body = read_response(connection)
        assert (response.status, body) == (200, b"5")


def test_deadline_applies_to_body() -> None:
    harness = create_harness()
    with live(harness.app) as server, server.connect() as connection:
        connection.sendall(post("/size", b"X-Request-Timeout-Seconds: 0.3", length=5))
        response, body = read_response(connection)
        assert response.status == 408
        assert b'"deadline_exceeded"' in body


def test_bodies_beyond_max_buffered_bytes_are_503() -> None:
    harness = create_harness(max_body_bytes=1_000, max_buffered_bytes=1_500)
    with live(harness.app) as server, server.connect() as slow, server.client() as client:
        slow.sendall(post("/size", body=b"1" * 900, length=1_000))
        until(lambda: harness.admission.num_bytes == 900)
        refused = client.post("/size", content=b"1" * 700, headers=JSON_TYPE)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) > 0
        accepted = client.post("/size", content=b"1" * 600, headers=JSON_TYPE)
        assert accepted.status_code == 200
    harness.wait_until_free()


def test_disconnect_during_body_releases_slot() -> None:
    harness = create_harness()
    with live(harness.app) as server:
        with server.connect() as connection:
            connection.sendall(post("/size", body=b"12", length=10))
            until(lambda: harness.admission.num_bytes == 2)
        harness.wait_until_free()


def test_disconnect_cancels_request() -> None:
    harness = create_harness()
    with live(harness.app) as server:
        for number in range(3):
            with server.connect() as connection:
                connection.sendall(post("/wait", body=b"%d" % number))
                until(lambda: len(harness.started) == number + 1)  # noqa: B023
                assert harness.admission.num_running == 1
            until(lambda: len(harness.cancelled) == number + 1)  # noqa: B023
        harness.wait_until_free()


def test_disconnect_or_deadline_during_response_does_not_cancel() -> None:
    harness = create_harness(request_timeout_s=1_000)

    async def pass_the_deadline() -> None:
        advance(1_001)
        await settle()

    harness.between_chunks = pass_the_deadline
    with live(harness.app) as server:
        with server.connect() as connection:
            connection.sendall(post("/slowly", body=b"1"))
            received = b""
            while b"one" not in received:
                received += (data := connection.recv(65536))
                assert data
        # A deadline that passes during the response does not cancel it either.
        with server.client() as client:
            assert client.post("/slowly", json=1).text == "one two three"
        harness.wait_until_free()


def test_pipelined_good_and_bad_requests_are_answered_in_order() -> None:
    harness = create_harness(max_body_bytes=100)
    with live(harness.app) as server, server.connect() as connection:
        bad = post("/size", body=b"12").replace(b"application/json", b"text/plain")
        sent = [
            post("/size", body=b"1"),
            bad,
            post("/size", body=b"123"),
            post("/nothing", body=b"1"),
            post("/wait", b"X-Request-Timeout-Seconds: 0.2", body=b"1"),
            post("/size", b"Connection: close", body=b"12345"),
        ]
        connection.sendall(b"".join(sent))
        answer = read_all(connection)
    statuses = [response[:3] for response in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"415", b"200", b"404", b"408", b"200"]


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [
        ({"max_requests": 2}, 503, "overloaded"),
        ({"max_requests_per_key": 2}, 429, "too_many_requests"),
    ],
)
def test_requests_above_limit_are_rejected_at_once(
    limits: dict[str, int], status: int, code: str
) -> None:
    harness = create_harness(KEY, **limits)
    headers = {"Authorization": f"Bearer {KEY}"}
    with live(harness.app) as server, server.client() as client:
        with server.connect() as first, server.connect() as second:
            for connection in (first, second):
                connection.sendall(post("/wait", b"Authorization: Bearer " + KEY.encode()))
            until(lambda: len(harness.started) == 2)
            refused = client.post("/wait", json=1, headers=headers)
            assert refused.status_code == status
            assert refused.json()["error"]["code"] == code
            assert int(refused.headers["retry-after"]) > 0
            assert client.get("/other", headers=headers).status_code == 200
            assert client.post("/wait", json=1).status_code == 401
        harness.wait_until_free()
        assert client.post("/size", json=1, headers=headers).status_code == 200


def test_concurrent_requests_get_own_responses_and_release_slots() -> None:
    harness = create_harness()
    with live(harness.app) as server:
        lock = threading.Lock()
        wrong: list[object] = []

        def work(number: int) -> None:
            with server.client() as client:
                for turn in range(10):
                    size = 1 + (number * 37 + turn * 1_009) % 5_000
                    answer = client.post("/size", content=b"1" * size, headers=JSON_TYPE)
                    late = client.post(
                        "/wait", json=1, headers={"X-Request-Timeout-Seconds": "0.05"}
                    )
                    if (answer.text, late.status_code) != (str(size), 408):
                        with lock:
                            wrong.append((answer.text, late.text))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert wrong == []
        assert len(harness.cancelled) == len(harness.started)
        harness.wait_until_free()


def test_body_below_min_rate_is_408() -> None:
    harness = create_harness(min_body_rate=100)
    with live(harness.app) as server, server.connect() as slow:
        slow.sendall(post("/size", body=b"1" * 200, length=10_000))
        until(lambda: harness.admission.num_bytes == 200)
        server.loop.advance(7.5)
        response, body = read_response(slow)
        assert response.status == 408
        assert b'"body_timeout"' in body
        assert b"only 200 bytes of the body arrived in 7 s, fewer than 100 a second" in body
        harness.wait_until_free()


def test_body_may_pause_above_min_average_rate() -> None:
    harness = create_harness(
        body_timeout_s=10_000,
        request_timeout_s=20_000,
        max_request_timeout_s=20_000,
        min_body_rate=1,
    )
    with live(harness.app) as server, server.connect() as connection:
        connection.sendall(post("/size", body=b"1" * 1_000, length=3_000))
        for number in (1_000, 2_000):
            until(lambda: harness.admission.num_bytes == number)  # noqa: B023
            server.loop.advance(900)  # 1,005 and 2,005 seconds are allowed by then
            connection.sendall(b"1" * 1_000)
        response, body = read_response(connection)
        assert (response.status, body) == (200, b"3000")


def test_stalled_bodies_of_one_client_do_not_affect_another() -> None:
    harness = create_harness(KEY, OTHER_KEY, max_body_bytes=1_000, max_buffered_bytes=8_000)
    mine, theirs = (f"Authorization: Bearer {key}".encode() for key in (KEY, OTHER_KEY))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(live(harness.app))
        for number in range(4):
            slow = stack.enter_context(server.connect())
            slow.sendall(post("/size", mine, body=b"1" * 999, length=1_000))
            until(lambda: harness.admission.num_bytes == 999 * (number + 1))  # noqa: B023
        for _ in range(5):
            with server.connect() as more:
                more.sendall(post("/size", mine, body=b"1" * 999, length=1_000))
                response, body = read_response(more)
                assert response.status == 429
                assert b"the limit of one client is " in body
        with server.connect() as other:
            other.sendall(post("/size", theirs, body=b"1" * 1_000))
            response, body = read_response(other)
            assert (response.status, body) == (200, b"1000")


def test_unread_response_resets_connection() -> None:
    harness = create_harness(answer_timeout_s=1_000)
    with live(harness.app) as server, unread(server, post("/large", body=b"1")) as connection:
        until(lambda: harness.admission.num_bytes == len(LARGE) + 1)
        assert harness.admission.num_running == 1

        def is_given_up() -> bool:
            server.loop.advance(1_001)  # repeated, since the operating system accepts some chunks
            return harness.admission.num_running == harness.admission.num_bytes == 0

        until(is_given_up)
        with pytest.raises(ConnectionResetError):  # the operating system drops its buffer too
            read_all(connection)


def test_disconnect_during_response_releases_slot() -> None:
    harness = create_harness()
    with live(harness.app) as server:
        with unread(server, post("/large", body=b"1")):
            until(lambda: harness.admission.num_bytes == len(LARGE) + 1)
        harness.wait_until_free()


def test_slowly_read_response_arrives_whole() -> None:
    harness = create_harness(answer_timeout_s=1_000)
    requests = [b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n", post("/large", body=b"1")]
    with live(harness.app) as server:
        for request in requests:
            with unread(server, request) as connection:
                response = HTTPResponse(connection)
                response.begin()
                body = b""
                while part := response.read(2**22):
                    body += part
                    server.loop.advance(100)
                assert body == LARGE
        harness.wait_until_free()


@pytest.mark.parametrize(
    ("step", "is_enough"), [(2 * MIN_PROGRESS_BYTES, True), (MIN_PROGRESS_BYTES // 10, False)]
)
def test_connection_resets_only_below_min_progress(step: int, is_enough: bool) -> None:
    """Even if the operating system accepts no data for many periods, since its buffer is full."""
    harness = create_harness(answer_timeout_s=1_000)
    with live(harness.app) as server, unread(server, post("/large", body=b"1")) as connection:
        response = HTTPResponse(connection)
        response.begin()
        body = b""
        try:
            for _ in range(25):
                body += response.read(step)
                server.loop.advance(600)  # so that each period has at least one step
                server.settle()
            body += response.read() if is_enough else response.read(step)
        except ConnectionResetError:
            assert not is_enough
        else:
            assert (is_enough, body) == (True, LARGE)
        harness.wait_until_free()
