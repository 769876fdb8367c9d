"""A service for tests of clients: real HTTP, rewards known beforehand, trouble on demand."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fastapi.testclient import TestClient
from waiting import until

FINGERPRINT = {"revision": "r"}


def reward_of(conversation: Any) -> float:
    """What the stub gives: the number in the last message."""
    if isinstance(conversation, dict):
        conversation = conversation["messages"]
    last = conversation[-1] if isinstance(conversation, list) else {"content": conversation}
    return float(last["content"])


def conversation(number: float, padding: str = "") -> list[dict[str, str]]:
    """One whose reward is known."""
    return [
        {"role": "user", "content": f"2+2?{padding}"},
        {"role": "assistant", "content": str(number)},
    ]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # Many a test has a client that does not wait for its answer.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class StubService:
    """Answers `/v1/score`, `/v1/compare`, `/v1/rank` and `/v1/render`.

    Attributes:
        app: answers all requests instead, if there is one, also GET.
        max_bytes: larger bodies are 413.
        refusals: answers for the next requests: a status, headers.
        delay_s: before each answer.
        num_together: requests wait until so many of them are in flight; then all of those go on.
        fingerprint: in every answer.
        bodies: that came.
        headers: that came with them.
        peers: ports of the connections that they came on.
        num_running: requests in flight.
        most_at_a_time: the largest number of them.
    """

    def __init__(self, app: TestClient | None = None) -> None:
        self.app = app
        self.max_bytes = 2**40
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.delay_s = 0.0
        self.fingerprint: dict[str, Any] = dict(FINGERPRINT)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.peers: list[int] = []
        self.num_together = 1
        self.num_running = 0
        self.most_at_a_time = 0
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                assert stub.app is not None
                answer = stub.app.get(self.path)
                self._send(answer.status_code, answer.json(), {})

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                with stub._lock:
                    stub.num_running += 1
                    stub.most_at_a_time = max(stub.most_at_a_time, stub.num_running)
                    stub.peers.append(self.client_address[1])
                    stub.headers.append(dict(self.headers))
                stub._wait_for_others()
                time.sleep(stub.delay_s)
                status, body, headers = stub._answer(self.path, content)
                with stub._lock:
                    stub.num_running -= 1
                self._send(status, body, headers)

            def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
                sent = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: object) -> None:
                pass

        self.http = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def _wait_for_others(self) -> None:
        with self._lock:
            number = len(self.headers)

        def all_here() -> bool:
            with self._lock:
                return len(self.headers) >= -(-number // self.num_together) * self.num_together

        until(all_here, f"{self.num_together} requests together")

    def _answer(self, route: str, content: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
        with self._lock:
            if self.refusals:
                status, headers = self.refusals.pop(0)
                return status, _error("refused", "not now"), headers
        if len(content) > self.max_bytes:
            return 413, _error("body_too_large", "split it"), {}
        body = json.loads(content)
        with self._lock:
            self.bodies.append(body)
        if self.app is not None:
            answer = self.app.post(route, json=body)
            return answer.status_code, answer.json(), {}
        if route == "/v1/compare":
            results = [self._pair(pair) for pair in body["pairs"]]
        elif route not in ("/v1/score", "/v1/rank", "/v1/render"):
            return 404, _error("http_404", f"no route {route}"), {}
        else:
            field = "responses" if route == "/v1/rank" else "conversations"
            results = [self._single(item) for item in body[field]]
        usage = {"num_computed_tokens": 2 * len(results), "num_cached_tokens": len(results)}
        return 200, {"results": results, "usage": usage, "fingerprint": self.fingerprint}, {}

    def _single(self, item: Any) -> dict[str, Any]:
        try:
            reward = reward_of(item)
        except ValueError:
            return _error("invalid_conversation", "that is no number")
        return {"reward": reward, "num_tokens": 1, "truncated": False}

    def _pair(self, pair: dict[str, Any]) -> dict[str, Any]:
        chosen, rejected = self._single(pair["chosen"]), self._single(pair["rejected"])
        if error := next((side for side in (chosen, rejected) if "error" in side), None):
            return error
        return {
            "chosen_reward": chosen["reward"],
            "rejected_reward": rejected["reward"],
            "margin": chosen["reward"] - rejected["reward"],
            "probability": 0.5,
            "truncated": False,
        }


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "type": "t", "param": None}}


@contextlib.contextmanager
def stub_service(app: TestClient | None = None) -> Iterator[StubService]:
    """One that runs."""
    stub = StubService(app)
    with stub.http:
        thread = threading.Thread(target=stub.http.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield stub
        finally:
            stub.http.shutdown()
            thread.join()
