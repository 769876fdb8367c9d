"""The Python client: its connections, retries, headers and error messages."""

from __future__ import annotations

import inspect
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

from serve.client import AsyncScoringClient, ScoringClient, ServiceError
from serve.client.endpoints import backoff_seconds

CONVERSATION = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
SCORED = b'{"results": [{"reward": 1.5, "num_tokens": 3, "truncated": false}]}'
OURS = b'{"error": {"message": "no", "type": "t", "param": null, "code": "c"}}'
KEY = "sk-very-secret"


@dataclass
class Answer:
    """The server's reaction to one request."""

    status: int = 200
    body: bytes = SCORED
    headers: Mapping[str, str] = field(default_factory=dict)
    missing: int = 0  # bytes of the body that are never sent
    silent: bool = False  # the connection is closed without a response


NOW = {"Retry-After": "0"}
DROPPED = Answer(silent=True)


class Server:
    """Answers each request with the next entry of `script`, then with a reward.

    Args:
        listening: whether to listen from the start; otherwise the port is bound and refuses
            connections.
    """

    def __init__(self, *, listening: bool = True) -> None:
        self.script: list[Answer] = []
        self.received: list[dict[str, str]] = []
        self.bodies: list[bytes] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(handler) -> None:
                length = int(handler.headers["Content-Length"])
                self.bodies.append(handler.rfile.read(length))
                self.received.append(dict(handler.headers))
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


def test_proxy_environment_is_ignored_for_loopback(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with ScoringClient(server.url) as client:
        assert reward(client) == 1.5


def test_too_few_results_raise_error(server: Server) -> None:
    with ScoringClient(server.url) as client, pytest.raises(ServiceError, match=r"2 .* 1 results"):
        client.score([CONVERSATION, CONVERSATION])


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b""])
def test_success_without_json_object_raises_error(server: Server, body: bytes) -> None:
    server.script = [Answer(body=body)]
    with ScoringClient(server.url) as client, pytest.raises(ServiceError, match="a JSON object"):
        reward(client)


@pytest.mark.parametrize("address", ["http://h:80x", "http://[::1"])
def test_invalid_address_raises_error(address: str) -> None:
    with pytest.raises(ServiceError, match="is not a valid address"):
        ScoringClient(address)


def test_unreachable_address_raises_error() -> None:
    with (
        ScoringClient("http://127.0.0.1:9", retry_timeout_s=0) as client,
        pytest.raises(ServiceError, match=r"is the service running there\? \(tries: 1"),
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
def test_transient_failure_is_retried(server: Server, failure: Answer) -> None:
    server.script = [failure]
    with ScoringClient(server.url) as client:
        assert reward(client) == 1.5
        assert client.num_retries == 1
    first, second = (headers["X-Request-Id"] for headers in server.received)
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
def test_permanent_failure_is_not_retried(server: Server, status: int, body: bytes) -> None:
    server.script = [Answer(status, body, NOW)]
    with ScoringClient(server.url) as client, pytest.raises(ServiceError, match=str(status)):
        reward(client)
    assert len(server.received) == 1


def test_retry_reaches_service_started_later() -> None:
    """Connections are refused until the client logs its first retry; then the server listens."""
    server = Server(listening=False)
    threads: list[threading.Thread] = []

    class StartServer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not threads:
                server.http.server_activate()
                threads.append(threading.Thread(target=server.http.handle_request))
                threads[0].start()

    logger, handler = logging.getLogger("serve.client"), StartServer()
    logger.addHandler(handler)
    try:
        with server.http, ScoringClient(server.url) as client:
            assert reward(client) == 1.5
            assert client.num_retries == 1
            threads[0].join()
    finally:
        logger.removeHandler(handler)


def test_each_request_has_unique_id(server: Server) -> None:
    with ScoringClient(server.url) as client:
        for _ in range(3):
            reward(client)
    assert len({headers["X-Request-Id"] for headers in server.received}) == 3


def test_final_error_has_number_of_tries_and_last_response(server: Server) -> None:
    server.script = [DROPPED, Answer(503, OURS, {"Retry-After": "3600"})]
    with (
        ScoringClient(server.url, retry_timeout_s=30) as client,
        pytest.raises(ServiceError) as caught,
    ):
        reward(client)
    assert "answered 503: no (tries: 2, request client-" in caught.value.detail


def test_zero_retry_timeout_disables_retries(server: Server) -> None:
    server.script = [Answer(503, OURS, NOW)]
    with (
        ScoringClient(server.url, retry_timeout_s=0) as client,
        pytest.raises(ServiceError, match="503"),
    ):
        reward(client)
    assert len(server.received) == 1


def test_each_retry_is_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.script = [Answer(503, OURS, NOW)]
    with caplog.at_level(logging.WARNING, "serve.client"), ScoringClient(server.url) as client:
        reward(client)
    # Only messages of this client: threads of other tests may still be retrying.
    (message,) = [m for record in caplog.records if server.url in (m := record.getMessage())]
    assert "answered 503: no; trying again in" in message


def test_api_key_and_deadline_are_sent_and_key_is_never_displayed(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = [Answer(503, OURS, NOW), Answer(401, OURS)]
    with (
        caplog.at_level(logging.DEBUG),
        ScoringClient(server.url, api_key=KEY, timeout_s=2.5) as client,
        pytest.raises(ServiceError) as caught,
    ):
        reward(client)
    for headers in server.received:
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert headers["X-Request-Timeout-Seconds"] == "2.5"
    texts = [repr(client), repr(vars(client)), str(caught.value), caplog.text]
    assert not [text for text in texts if KEY in text]


@pytest.mark.parametrize("key", ["", " ", f"{KEY}\nX-Evil: 1", f"{KEY}é"])
def test_invalid_api_key_is_not_quoted_in_error(key: str) -> None:
    with pytest.raises(ServiceError, match="one line of ASCII") as caught:
        ScoringClient("http://127.0.0.1:9", api_key=key)
    assert KEY not in str(caught.value)


def test_password_in_url_is_not_displayed() -> None:
    with (
        ScoringClient("http://me:hunter2@127.0.0.1:9", retry_timeout_s=0) as client,
        pytest.raises(ServiceError) as caught,
    ):
        reward(client)
    assert "http://127.0.0.1:9" in caught.value.detail
    assert "hunter2" not in caught.value.detail


def compute_backoffs(*failures: httpx.Response | httpx.HTTPError) -> list[float]:
    return [backoff_seconds(failure, number) for number, failure in enumerate(failures)]


def test_backoff_grows_up_to_limit() -> None:
    backoffs = compute_backoffs(*itertools.repeat(httpx.ConnectError("refused"), 12))
    for number, backoff_s in enumerate(backoffs):
        max_backoff_s = min(30.0, 0.5 * 2**number)
        assert max_backoff_s / 2 <= backoff_s <= max_backoff_s


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honored(as_date: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return now

    monkeypatch.setattr("serve.client.endpoints.datetime", Clock)
    date = format_datetime(now + timedelta(seconds=40), usegmt=True)
    response = httpx.Response(503, headers={"Retry-After": date if as_date else "40"})
    (backoff_s,) = compute_backoffs(response)
    assert 40 <= backoff_s <= 48


def test_unparsable_retry_after_falls_back_to_backoff() -> None:
    (backoff_s,) = compute_backoffs(httpx.Response(503, headers={"Retry-After": "soon"}))
    assert backoff_s <= 0.5


def test_lone_surrogate_is_sent_as_json(server: Server) -> None:
    broken = [{"role": "user", "content": "\ud800"}, CONVERSATION[1]]
    with ScoringClient(server.url) as client:
        client.score([broken])
    assert json.loads(server.bodies[0])["conversations"] == [broken]


def test_both_clients_document_the_same_methods() -> None:
    methods = {name for name in vars(ScoringClient) if not name.startswith("_")}
    assert methods == {name for name in vars(AsyncScoringClient) if not name.startswith("_")}
    for name in methods - {"close"}:
        blocking, asynchronous = getattr(ScoringClient, name), getattr(AsyncScoringClient, name)
        assert inspect.iscoroutinefunction(asynchronous)
        assert inspect.signature(blocking) == inspect.signature(asynchronous)
        assert blocking.__doc__ == asynchronous.__doc__
        assert blocking.__name__ == asynchronous.__name__ == name
    signature = inspect.signature(ScoringClient.score)
    assert signature.return_annotation == "list[float] | list[ModelRewards]"
    assert list(signature.parameters)[:3] == ["self", "conversations", "truncation"]
