"""Responses that are too large, too slow, malformed or redirected, and credentials in addresses."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import logging
import pickle
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from stub_service import StubService, conversation

from serve.client import ServiceError, base
from serve.client.endpoints import get_display_url, is_loopback
from serve.client.responses import MAX_ANSWER_BYTES, RankedResponse, Ranking
from serve.client.settings import ClientSettings
from serve.jobs.command import ExecutorOptions

MakeClient = Callable[..., Any]
WARNING = "system_prompt: " + "the model's card advises against system prompts " * 10


def build_body(num_results: int, num_warnings: int = 0) -> bytes:
    warnings = [WARNING] * num_warnings
    result = {"reward": 1.5, "num_tokens": 9, "truncated": False, "warnings": warnings}
    return json.dumps({"results": [result] * num_results, "fingerprint": {}}).encode()


@contextlib.contextmanager
def serve_response(
    body: bytes | Iterator[bytes] = b"", status: int = 200, host: str = "127.0.0.1", **headers: str
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Run a service with one response to all requests; yield its URL and the received headers."""
    received: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            received.append(dict(self.headers))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            with contextlib.suppress(OSError):
                for data in [body] if isinstance(body, bytes) else body:
                    self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def get_error_detail(make_client: MakeClient, url: str, **options: Any) -> str:
    with pytest.raises(ServiceError) as caught:
        make_client(url, retry_timeout_s=0, **options).score([conversation(1)])
    return caught.value.detail


def test_20000_results_with_warnings_are_within_response_limit() -> None:
    assert len(build_body(20_000)) < MAX_ANSWER_BYTES / 10
    assert len(build_body(20_000, num_warnings=5)) < MAX_ANSWER_BYTES


def test_gzip_response_is_read(make_client: MakeClient) -> None:
    with serve_response(gzip.compress(build_body(1)), Content_Encoding="gzip") as (url, received):
        assert make_client(url).score([conversation(1)]) == [1.5]
    assert received[0]["Accept-Encoding"] == "gzip"


def test_gzip_bomb_is_decompressed_only_up_to_limit(make_client: MakeClient) -> None:
    bomb = gzip.compress(b"0" * (200 << 20), 9)
    with serve_response(bomb, Content_Encoding="gzip") as (url, _):
        tracemalloc.start()
        try:
            detail = get_error_detail(make_client, url, max_answer_bytes=4 << 20)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert "sent a response that was not read: it has more than 4,194,304 bytes" in detail
    assert "max_answer_bytes" in detail
    assert peak < 32 << 20


@pytest.mark.parametrize("compressed", [False, True])
def test_endless_response_is_abandoned(make_client: MakeClient, compressed: bool) -> None:
    def iter_endlessly() -> Iterator[bytes]:
        if compressed:
            yield gzip.compress(b"")[:10]
        while True:
            yield b"\0\xff\xff\0\0" + b" " * 65535 if compressed else b" " * 65536

    headers = {"Content_Encoding": "gzip"} if compressed else {}
    with serve_response(iter_endlessly(), **headers) as (url, _):
        assert "more than 1,000,000 bytes" in get_error_detail(
            make_client, url, max_answer_bytes=1_000_000
        )


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ({"Content_Encoding": "br"}, b"x", "it is encoded as 'br', but gzip was requested"),
        ({"Content_Encoding": "gzip, gzip"}, b"x", "it is encoded as 'gzip, gzip'"),
        ({"Content_Encoding": "gzip"}, b"no gzip", "it cannot be decompressed"),
        (
            {"Content_Encoding": "gzip"},
            gzip.compress(build_body(1), mtime=0)[:-9],
            "its end is missing",
        ),
        (
            {"Content_Type": "text/html; charset=zlib_codec"},
            b"<html>",
            "not answer with a JSON object",
        ),
        ({}, b'{"a":' * 100_000, "not answer with a JSON object"),
        ({}, b'{"results":[' + b"[]," * 2_000_001 + b"1]}", "not answer with a JSON object"),
        (
            {},
            b'{"results":[{"reward":1,"num_tokens":"x","truncated":false}]}',
            "unexpected response",
        ),
        (
            {},
            b'{"results":[{"reward":1,"num_tokens":1e9,"truncated":false}]}',
            "unexpected response",
        ),
        ({}, build_body(1).replace(b'"warnings": []', b'"warnings": "abc"'), "unexpected response"),
        ({}, b'{"results":[{"error":{"code":["a"],"message":{}}}]}', "unexpected response"),
    ],
)
def test_malformed_response_raises_error(
    make_client: MakeClient, headers: dict[str, str], body: bytes, expected: str
) -> None:
    with serve_response(body, **headers) as (url, _):
        assert expected in get_error_detail(make_client, url)


def test_error_body_ignores_declared_codec(make_client: MakeClient) -> None:
    with serve_response(b"<h1>no\xff", 500, Content_Type="text/html; charset=zlib_codec") as (
        url,
        _,
    ):
        assert "answered 500: <h1>no\N{REPLACEMENT CHARACTER}" in get_error_detail(make_client, url)


def test_silent_or_slow_response_is_abandoned(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_LEAST_GRACE_S", 0.2)
    finished = threading.Event()

    def send_nothing() -> Iterator[bytes]:
        finished.wait()
        yield b""

    def send_slowly() -> Iterator[bytes]:
        while not finished.wait(0.01):
            yield b" "

    with serve_response(send_nothing()) as (silent, _), serve_response(send_slowly()) as (slow, _):
        assert "ReadTimeout" in get_error_detail(make_client, silent, timeout_s=0.1)
        assert "it arrives too slowly" in get_error_detail(make_client, slow, timeout_s=0.1)
        finished.set()


def test_read_timeout_is_timeout_plus_grace() -> None:
    def get_read_timeout_s(timeout_s: float | None) -> float:
        return base.ClientOptions(("http://h",), timeout_s=timeout_s).read_timeout_s

    assert [get_read_timeout_s(t) for t in (None, 0.5, 10, 300)] == [600, 5.5, 20, 330]


def test_redirect_is_not_followed(make_client: MakeClient) -> None:
    with (
        serve_response(build_body(1)) as (target, received),
        serve_response(b"", 307, Location=target) as (url, _),
    ):
        assert "answered 307" in get_error_detail(make_client, url, api_key="sk-secret")
    assert not received


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True), ("LOCALHOST.", True), ("a.localhost", True), ("127.0.0.2", True),
        ("127.1", True), ("2130706433", True), ("0x7f.1", True), ("0.0.0.0", True), ("::1", True),
        ("::", True), ("::ffff:127.0.0.9", True), ("localhost.example", False), ("10.0.0.1", False),
        ("127.0.0.1.example", False), ("::2", False), ("128.0.0.1", False), ("", False),
    ],
)  # fmt: skip
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_loopback_requests_bypass_proxy(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    with (
        serve_response(b"", 502) as (proxy, received),
        serve_response(build_body(1), host=host) as (url, _),
    ):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        assert make_client(url, api_key="sk-secret").score([conversation(1)]) == [1.5]
    assert not received


def test_credentials_in_url_are_sent_and_never_displayed(
    make_client: MakeClient, stub: StubService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = stub.url.replace("//", "//me:pw%2Fsecret@") + "?token=secret#secret"
    made = make_client(url, api_key="sk-secret", retry_timeout_s=5)
    stub.refusals = [(503, {"Retry-After": "0"})]
    assert made.score([conversation(2)]) == [2]
    basic = base64.b64encode(b"me:pw/secret").decode()
    assert {h["Authorization"] for h in stub.headers} == {f"Basic {basic}"}
    stub.refusals = [(400, {})]
    with pytest.raises(ServiceError) as caught:
        made.score([conversation(2)])
    client = getattr(made, "client", made)
    texts = [
        caplog.text, str(caught.value), repr(caught.value), repr(client), repr(client.options),
        repr(client._sender), repr(ClientSettings.load(urls=url)),
        repr(ExecutorOptions({}, (url,), api_key="sk-secret")),
        json.dumps(ExecutorOptions({}, (url,)).model_spec),
    ]  # fmt: skip
    assert not [text for text in texts if "secret" in text or basic in text]
    assert stub.url in caught.value.detail
    assert "the query or fragment of the address" in caplog.text
    assert pickle.loads(pickle.dumps(client)).options.urls == (url,)
    assert (
        ExecutorOptions({}, (url,)).model_spec == ExecutorOptions({}, (f"{stub.url}/",)).model_spec
    )


@pytest.mark.parametrize(
    "url",
    [
        "ftp://me:secret@host", "me:secret@host:8000", "http://me:secret@host:99999999",
        "http://me:secret@", "http://me:secret@[::1", "http://h:x?secret", "secret@",
    ],
)  # fmt: skip
def test_invalid_address_error_hides_credentials(url: str) -> None:
    with pytest.raises(ServiceError, match="is not a valid address") as caught:
        get_display_url(url)
    assert "secret" not in str(caught.value)


def test_ranks_of_many_rewards() -> None:
    rewards = [float(n % 15_000) for n in range(20_000)]
    ranking = Ranking.from_responses([RankedResponse(reward) for reward in rewards])
    assert ranking.best_index == 14_999
    ranked = [RankedResponse(reward) for reward in (1.0, 3.0, 3.0, 2.0)]
    assert Ranking.from_responses(ranked).ranks == [4, 1, 1, 3]
