"""Services that answer too much, too slowly or elsewhere, and secrets in their addresses."""

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
from serve.client.bodies import MAX_ANSWER_BYTES
from serve.client.endpoints import get_display_url, is_loopback
from serve.client.responses import Ranking
from serve.client.settings import ClientSettings
from serve.jobs.command import ExecutorOptions

ClientOf = Callable[..., Any]
WARNING = "system_prompt: " + "the model's card advises against system prompts " * 10


def good(number: int, warnings: int = 0) -> bytes:
    result = {"reward": 1.5, "num_tokens": 9, "truncated": False, "warnings": [WARNING] * warnings}
    return json.dumps({"results": [result] * number, "fingerprint": {}}).encode()


@contextlib.contextmanager
def answering(
    body: bytes | Iterator[bytes] = b"", status: int = 200, host: str = "127.0.0.1", **headers: str
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A service that always answers the same; gives its address and the headers that came."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append(dict(self.headers))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            with contextlib.suppress(OSError):
                for piece in [body] if isinstance(body, bytes) else body:
                    self.wfile.write(piece)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def refusal(client_of: ClientOf, url: str, **options: Any) -> str:
    with pytest.raises(ServiceError) as caught:
        client_of(url, retry_s=0, **options).score([conversation(1)])
    return caught.value.detail


def test_answers_with_20000_results_and_warnings_are_within_the_limit() -> None:
    assert len(good(20_000)) < MAX_ANSWER_BYTES / 10
    assert len(good(20_000, warnings=5)) < MAX_ANSWER_BYTES


def test_a_compressed_answer_is_read(client_of: ClientOf) -> None:
    with answering(gzip.compress(good(1)), Content_Encoding="gzip") as (url, seen):
        assert client_of(url).score([conversation(1)]) == [1.5]
    assert seen[0]["Accept-Encoding"] == "gzip"


def test_a_bomb_is_not_unpacked_past_the_limit(client_of: ClientOf) -> None:
    bomb = gzip.compress(b"0" * (200 << 20), 9)
    with answering(bomb, Content_Encoding="gzip") as (url, _):
        tracemalloc.start()
        try:
            said = refusal(client_of, url, max_answer_bytes=4 << 20)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert "sent an answer that is not read: it has more than 4,194,304 bytes" in said
    assert "max_answer_bytes" in said
    assert peak < 32 << 20


@pytest.mark.parametrize("packed", [False, True])
def test_an_endless_answer_is_left(client_of: ClientOf, packed: bool) -> None:
    def endless() -> Iterator[bytes]:
        if packed:
            yield gzip.compress(b"")[:10]
        while True:
            yield b"\0\xff\xff\0\0" + b" " * 65535 if packed else b" " * 65536

    headers = {"Content_Encoding": "gzip"} if packed else {}
    with answering(endless(), **headers) as (url, _):
        assert "more than 1,000,000 bytes" in refusal(client_of, url, max_answer_bytes=1_000_000)


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        ({"Content_Encoding": "br"}, b"x", "it is encoded as 'br', and gzip was asked"),
        ({"Content_Encoding": "gzip, gzip"}, b"x", "it is encoded as 'gzip, gzip'"),
        ({"Content_Encoding": "gzip"}, b"no gzip", "it cannot be unpacked"),
        ({"Content_Encoding": "gzip"}, gzip.compress(good(1), mtime=0)[:-9], "its end is missing"),
        ({"Content_Type": "text/html; charset=zlib_codec"}, b"<html>", "no JSON object"),
        ({}, b'{"a":' * 100_000, "no JSON object"),
        ({}, b'{"results":[' + b"[]," * 2_000_001 + b"1]}", "no JSON object"),
        ({}, b'{"results":[{"reward":1,"num_tokens":"x","truncated":false}]}', "nonsense"),
        ({}, b'{"results":[{"reward":1,"num_tokens":1e9,"truncated":false}]}', "nonsense"),
        ({}, good(1).replace(b'"warnings": []', b'"warnings": "abc"'), "nonsense"),
        ({}, b'{"results":[{"error":{"code":["a"],"message":{}}}]}', "nonsense"),
    ],
)
def test_answers_of_another_shape_are_told(
    client_of: ClientOf, headers: dict[str, str], body: bytes, said: str
) -> None:
    with answering(body, **headers) as (url, _):
        assert said in refusal(client_of, url)


def test_an_error_that_names_a_codec_is_quoted_as_bytes(client_of: ClientOf) -> None:
    with answering(b"<h1>no\xff", 500, Content_Type="text/html; charset=zlib_codec") as (url, _):
        assert "answered 500: <h1>no\N{REPLACEMENT CHARACTER}" in refusal(client_of, url)


def test_a_service_that_says_nothing_is_left(
    client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_LEAST_GRACE_S", 0.2)
    said = threading.Event()

    def silence() -> Iterator[bytes]:
        said.wait()
        yield b""

    def drip() -> Iterator[bytes]:
        while not said.wait(0.01):
            yield b" "

    with answering(silence()) as (silent, _), answering(drip()) as (dripping, _):
        assert "ReadTimeout" in refusal(client_of, silent, timeout_s=0.1)
        assert "it comes too slowly" in refusal(client_of, dripping, timeout_s=0.1)
        said.set()


def test_a_silent_service_is_left_after_the_timeout_and_a_grace() -> None:
    def silence_s(timeout_s: float | None) -> float:
        return base.ClientOptions(("http://h",), timeout_s=timeout_s).read_timeout_s

    assert [silence_s(t) for t in (None, 0.5, 10, 300)] == [600, 5.5, 20, 330]


def test_a_redirect_is_not_followed(client_of: ClientOf) -> None:
    with answering(good(1)) as (other, seen), answering(b"", 307, Location=other) as (url, _):
        assert "answered 307" in refusal(client_of, url, api_key="sk-secret")
    assert not seen


@pytest.mark.parametrize(
    ("host", "is_here"),
    [
        ("localhost", True), ("LOCALHOST.", True), ("a.localhost", True), ("127.0.0.2", True),
        ("127.1", True), ("2130706433", True), ("0x7f.1", True), ("0.0.0.0", True), ("::1", True),
        ("::", True), ("::ffff:127.0.0.9", True), ("localhost.example", False), ("10.0.0.1", False),
        ("127.0.0.1.example", False), ("::2", False), ("128.0.0.1", False), ("", False),
    ],
)  # fmt: skip
def test_names_of_this_machine(host: str, is_here: bool) -> None:
    assert is_loopback(host) == is_here


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_no_proxy_gets_what_is_for_this_machine(
    client_of: ClientOf, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    with answering(b"", 502) as (proxy, seen), answering(good(1), host=host) as (url, _):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        assert client_of(url, api_key="sk-secret").score([conversation(1)]) == [1.5]
    assert not seen


def test_secrets_of_an_address_are_sent_and_never_shown(
    client_of: ClientOf, stub: StubService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = stub.url.replace("//", "//me:pw%2Fsecret@") + "?token=secret#secret"
    made = client_of(url, api_key="sk-secret", retry_s=5)
    stub.refusals = [(503, {"Retry-After": "0"})]
    assert made.score([conversation(2)]) == [2]
    basic = base64.b64encode(b"me:pw/secret").decode()
    assert {h["Authorization"] for h in stub.headers} == {f"Basic {basic}"}
    stub.refusals = [(400, {})]
    with pytest.raises(ServiceError) as caught:
        made.score([conversation(2)])
    inner = getattr(made, "client", made)
    shown = [
        caplog.text, str(caught.value), repr(caught.value), repr(inner), repr(inner.options),
        repr(inner._sender), repr(ClientSettings.load(urls=url)),
        repr(ExecutorOptions({}, (url,), api_key="sk-secret")), json.dumps(ExecutorOptions({}, (url,)).model_spec),
    ]  # fmt: skip
    assert not [text for text in shown if "secret" in text or basic in text]
    assert stub.url in caught.value.detail
    assert "what follows ? or # in the address" in caplog.text
    assert pickle.loads(pickle.dumps(inner)).options.urls == (url,)
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
def test_what_is_no_address_is_told_without_secrets(url: str) -> None:
    with pytest.raises(ServiceError, match="is no address") as caught:
        get_display_url(url)
    assert "secret" not in str(caught.value)


def test_ranks_of_many_rewards() -> None:
    rewards = [float(n % 15_000) for n in range(20_000)]
    ranking = Ranking.from_rewards(rewards)
    assert ranking.best_index == 14_999
    assert Ranking.from_rewards([1.0, 3.0, 3.0, 2.0]).ranks == [4, 1, 1, 3]
