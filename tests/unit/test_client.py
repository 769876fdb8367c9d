"""The Python client: whom it talks to, what it tries again, what it says when it gives up."""

from __future__ import annotations

import itertools
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from serve.client import ScoringClient, ServiceError
from serve.client.retries import backoff_seconds

CONVERSATION = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
SCORED = b'{"results": [{"reward": 1.5, "num_tokens": 3, "truncated": false}]}'
OURS = b'{"error": {"message": "no", "type": "t", "param": null, "code": "c"}}'
KEY = "sk-very-secret"


@dataclass
class Answer:
    """What the server does with one request."""

    status: int = 200
    body: bytes = SCORED
    headers: Mapping[str, str] = field(default_factory=dict)
    missing: int = 0  # bytes of the body that never come
    silent: bool = False  # the connection ends without a word


NOW = {"Retry-After": "0"}
DROPPED = Answer(silent=True)


class Server:
    """Answers with `script`, one request each, then with a reward.

    Args:
        listening: from the start; else its port is taken and refuses connections.
    """

    def __init__(self, *, listening: bool = True) -> None:
        self.script: list[Answer] = []
        self.seen: list[dict[str, str]] = []
        self.bodies: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(handler) -> None:
                length = int(handler.headers["Content-Length"])
                self.bodies.append(handler.rfile.read(length))
                self.seen.append(dict(handler.headers))
                answer = self.script.pop(0) if self.script else Answer()
                handler.close_connection = True
                if answer.silent:
                    return
                handler.send_response(answer.status)
                handler.send_header("Content-Length", str(len(answer.body) + answer.missing))
                for name, value in answer.headers.items():
                    handler.send_header(name, value)
                handler.end_headers()
                handler.wfile.write(answer.body)

            def log_message(handler, *_: object) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.http.server_bind()
        if listening:
            self.http.server_activate()
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    with server.http:
        thread = threading.Thread(target=server.http.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.http.shutdown()
        thread.join()


def reward(client: ScoringClient) -> float:
    (result,) = client.results([CONVERSATION])
    return result.reward  # type: ignore[union-attr]


def test_a_proxy_of_the_environment_does_not_stand_before_this_machine(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with ScoringClient(server.url) as client:
        assert reward(client) == 1.5


def test_too_few_results_are_noticed(server: Server) -> None:
    with ScoringClient(server.url) as client, pytest.raises(ServiceError, match=r"2 .* 1 results"):
        client.score([CONVERSATION, CONVERSATION])


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b""])
def test_a_success_that_is_no_object_is_told(server: Server, body: bytes) -> None:
    server.script = [Answer(body=body)]
    with ScoringClient(server.url) as client, pytest.raises(ServiceError, match="no JSON object"):
        reward(client)


@pytest.mark.parametrize("address", ["http://h:80x", "http://[::1"])
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(ServiceError, match="is no address"):
        ScoringClient(address)


def test_nobody_at_the_address() -> None:
    with (
        ScoringClient("http://127.0.0.1:9", retry_s=0) as client,
        pytest.raises(ServiceError, match=r"is the service running there\? \(1 tries"),
    ):
        reward(client)


@pytest.mark.parametrize(
    "failure",
    [
        *(Answer(status, OURS, NOW) for status in (429, 502, 503, 504)),
        Answer(503, b"<html>no server is available</html>", NOW),
        Answer(500, b"Internal Server Error", NOW),
        Answer(500, b'{"detail": "of another server"}', NOW),
        Answer(408, b"Request timed out", NOW),
        DROPPED,
        Answer(missing=10),
    ],
    ids=lambda f: "dropped" if f.silent else "cut" if f.missing else f"{f.status} {f.body[:9]!r}",
)
def test_what_may_go_away_is_tried_again(server: Server, failure: Answer) -> None:
    server.script = [failure]
    with ScoringClient(server.url) as client:
        assert reward(client) == 1.5
        assert client.num_retries == 1
    first, second = (headers["X-Request-Id"] for headers in server.seen)
    assert first == second


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((status, OURS) for status in (400, 401, 404, 408, 422, 500)),
        (400, b"Bad Request"),
        (404, b"<html>"),
        (501, b""),
    ],
)
def test_what_would_fail_again_is_not(server: Server, status: int, body: bytes) -> None:
    server.script = [Answer(status, body, NOW)]
    with ScoringClient(server.url) as client, pytest.raises(ServiceError, match=str(status)):
        reward(client)
    assert len(server.seen) == 1


def test_a_service_that_is_started_later() -> None:
    """Refused at first; somebody listens once the client has said so in its log."""
    server = Server(listening=False)
    threads: list[threading.Thread] = []

    class Starts(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not threads:
                server.http.server_activate()
                threads.append(threading.Thread(target=server.http.handle_request))
                threads[0].start()

    log, starts = logging.getLogger("serve.client"), Starts()
    log.addHandler(starts)
    try:
        with server.http, ScoringClient(server.url) as client:
            assert reward(client) == 1.5
            assert client.num_retries == 1
            threads[0].join()
    finally:
        log.removeHandler(starts)


def test_every_request_has_an_id_of_its_own(server: Server) -> None:
    with ScoringClient(server.url) as client:
        for _ in range(3):
            reward(client)
    assert len({headers["X-Request-Id"] for headers in server.seen}) == 3


def test_the_end_tells_how_often_it_was_tried_and_the_last_answer(server: Server) -> None:
    server.script = [DROPPED, Answer(503, OURS, {"Retry-After": "3600"})]
    with ScoringClient(server.url, retry_s=30) as client, pytest.raises(ServiceError) as caught:
        reward(client)
    assert "answered 503: no (2 tries, request client-" in caught.value.detail


def test_never_again_if_so_chosen(server: Server) -> None:
    server.script = [Answer(503, OURS, NOW)]
    with ScoringClient(server.url, retry_s=0) as client, pytest.raises(ServiceError, match="503"):
        reward(client)
    assert len(server.seen) == 1


def test_each_failure_is_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.script = [Answer(503, OURS, NOW)]
    with caplog.at_level(logging.WARNING, "serve.client"), ScoringClient(server.url) as client:
        reward(client)
    # Of this client alone: threads of others may still be trying.
    (told,) = [m for record in caplog.records if server.url in (m := record.getMessage())]
    assert "answered 503: no; trying again in" in told


def test_key_and_deadline_are_sent_and_the_key_is_told_to_nobody_else(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = [Answer(503, OURS, NOW), Answer(401, OURS)]
    with (
        caplog.at_level(logging.DEBUG),
        ScoringClient(server.url, api_key=KEY, timeout_s=2.5) as client,
        pytest.raises(ServiceError) as caught,
    ):
        reward(client)
    for headers in server.seen:
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert headers["X-Request-Timeout-Seconds"] == "2.5"
    shown = [repr(client), repr(vars(client)), str(caught.value), caplog.text]
    assert not [text for text in shown if KEY in text]


@pytest.mark.parametrize("key", ["", " ", f"{KEY}\nX-Evil: 1", f"{KEY}é"])
def test_what_is_no_key_is_not_quoted(key: str) -> None:
    with pytest.raises(ServiceError, match="one line of ASCII") as caught:
        ScoringClient("http://127.0.0.1:9", api_key=key)
    assert KEY not in str(caught.value)


def test_a_password_in_the_address_is_not_told() -> None:
    with (
        ScoringClient("http://me:hunter2@127.0.0.1:9", retry_s=0) as client,
        pytest.raises(ServiceError) as caught,
    ):
        reward(client)
    assert "http://127.0.0.1:9" in caught.value.detail
    assert "hunter2" not in caught.value.detail


def waits(*failures: httpx.Response | httpx.HTTPError) -> list[float]:
    return [backoff_seconds(failure, number) for number, failure in enumerate(failures)]


def test_waits_grow_up_to_a_limit() -> None:
    found = waits(*itertools.repeat(httpx.ConnectError("refused"), 12))
    for number, wait in enumerate(found):
        longest = min(30.0, 0.5 * 2**number)
        assert longest / 2 <= wait <= longest


@pytest.mark.parametrize("as_date", [False, True])
def test_a_wait_that_is_asked_for_is_kept(as_date: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return now

    monkeypatch.setattr("serve.client.retries.datetime", Clock)
    date = format_datetime(now + timedelta(seconds=40), usegmt=True)
    asked = httpx.Response(503, headers={"Retry-After": date if as_date else "40"})
    (wait,) = waits(asked)
    assert 40 <= wait <= 48


def test_a_wait_that_nobody_understands_is_our_own() -> None:
    (wait,) = waits(httpx.Response(503, headers={"Retry-After": "soon"}))
    assert wait <= 0.5


def test_the_body_is_json_whatever_is_in_it(server: Server) -> None:
    broken = [{"role": "user", "content": "\ud800"}, CONVERSATION[1]]
    with ScoringClient(server.url) as client:
        client.score([broken])
    assert json.loads(server.bodies[0])["conversations"] == [broken]
