"""The Python client: whom it talks to, and what it says of those who do not answer as agreed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from serve.clients import ScoringClient, ServiceError

CONVERSATION = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


class _Answers(BaseHTTPRequestHandler):
    body = b'{"results": [{"reward": 1.5, "num_tokens": 3, "truncated": false}]}'

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_proxy_of_the_environment_does_not_stand_before_this_machine(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with ScoringClient(url) as client:
        assert client.score([CONVERSATION])[0].reward == 1.5  # type: ignore[union-attr]


def test_too_few_results_are_noticed(url: str) -> None:
    with ScoringClient(url) as client, pytest.raises(ServiceError, match=r"2 .* 1 results"):
        client.score([CONVERSATION, CONVERSATION])


@pytest.mark.parametrize("address", ["http://h:80x", "http://[::1"])
def test_what_is_no_address_is_told(address: str) -> None:
    with pytest.raises(ServiceError, match="is no address"):
        ScoringClient(address)


def test_nobody_at_the_address() -> None:
    with (
        ScoringClient("http://127.0.0.1:9") as client,
        pytest.raises(ServiceError, match="is the service running there"),
    ):
        client.score([CONVERSATION])
