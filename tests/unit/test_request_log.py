"""One log line per request, whatever its outcome, without text that a client sent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeBackend, conversation, ready, serving
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_text import read, series
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from waiting import until

from rm_core import NotReadyError
from serve.api.app import create_app
from serve.api.middleware.request_log import InFlightRequests, RequestLogMiddleware
from serve.config.settings import Settings
from serve.scoring.served_model import ScoreResult, ServedModel
from serve.scoring.service import ScoringService
from serve.telemetry.logging import TextFormatter, current_request
from serve.telemetry.metrics import Metrics

BODY = {"conversations": [conversation("4"), conversation("five"), []]}
STAGES = ("x-tokenization-time", "x-queue-time", "x-inference-time", "x-total-time")


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def client(backend: FakeBackend) -> Iterator[TestClient]:
    with serving(backend) as client:
        until(lambda: ready(client))
        yield client


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """The fields of every request line at INFO so far."""
    caplog.set_level(logging.INFO, "serve")
    return lambda: [vars(record)["fields"] for record in caplog.records if record.msg == "request"]


def test_scored_request_is_one_log_line(
    client: TestClient, lines: Callable[[], list[dict[str, Any]]], backend: FakeBackend
) -> None:
    backend.delay_s = 0.05
    usage = client.post("/v1/score", json=BODY).json()["usage"]
    (line,) = lines()
    times = {
        name: line.pop(name)
        for name in ("tokenize_s", "queue_duration_s", "inference_s", "total_s")
    }
    assert line == {
        "method": "POST",
        "route": "/v1/score",
        "status": 200,
        "client": "anonymous",
        "model": "demo",
        "conversations": 3,
        "errors": 1,
        "tokens": usage["num_tokens"],
        "computed": usage["num_computed_tokens"],
        "cached": 0,
    }
    assert times["tokenize_s"] > 0
    assert times["queue_duration_s"] + times["inference_s"] >= 0.05
    assert times["total_s"] >= sum(times.values()) - times["total_s"]


def test_scoring_responses_have_stage_times_in_milliseconds(
    client: TestClient, backend: FakeBackend
) -> None:
    backend.delay_s = 0.05
    started = time.perf_counter()
    headers = client.post("/v1/score", json=BODY).headers
    most = 1_000 * (time.perf_counter() - started)
    times = {name: int(headers[name]) for name in STAGES}
    assert 50 <= times["x-queue-time"] + times["x-inference-time"] <= times["x-total-time"] + 2
    assert times["x-total-time"] <= most + 1
    assert not set(STAGES) & set(client.get("/v1/models").headers)


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/v1/score", {"secret": 1}, ("/v1/score", 400, "bad_request")),
        ("POST", "/v1/score", {**BODY, "model": "x"}, ("/v1/score", 404, "model_not_found")),
        ("GET", "/v1/score", None, ("/v1/score", 405, "http_405")),
        ("GET", "/secret", None, ("unmatched", 404, "http_404")),
        ("GET", "/v1/models", None, ("/v1/models", 200, None)),
        ("GET", "/static-offline-docs/secret", None, ("/static-offline-docs/*", 404, "http_404")),
    ],
)
def test_every_request_is_logged_without_client_input(
    client: TestClient,
    caplog: pytest.LogCaptureFixture,
    lines: Callable[[], list[dict[str, Any]]],
    method: str,
    path: str,
    body: Any,
    expected: tuple[str, int, str | None],
) -> None:
    client.request(method, path, json=body)
    (line,) = lines()
    assert (line["route"], line["status"], line.get("code")) == expected
    assert all("secret" not in TextFormatter().format(r) for r in caplog.records)


async def fail_unexpectedly(*_: Any) -> ScoreResult:
    raise ZeroDivisionError


def test_overload_and_unexpected_exception_are_logged_with_codes(
    client: TestClient,
    backend: FakeBackend,
    lines: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ServedModel, "score", fail_unexpectedly)
        answer = client.post("/v1/score", json=BODY, headers={"X-Request-Id": "step-1"})
    assert answer.headers.get_list("x-request-id") == ["step-1"]
    backend.failure = NotReadyError("gone")
    client.post("/v1/score", json=BODY)
    assert [(line["status"], line["code"]) for line in lines()] == [
        (500, "internal_error"),
        (503, "not_ready"),
    ]


def test_status_routes_are_logged_at_debug(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "serve")
    caplog.clear()
    for route in ("/health", "/ready", "/metrics"):
        client.get(route)
    lines = [(r.levelno, vars(r)["fields"]["route"]) for r in caplog.records if r.msg == "request"]
    assert lines == [(logging.DEBUG, route) for route in ("/health", "/ready", "/metrics")]


def test_message_text_is_not_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    body = {"conversations": [conversation("my-secret-answer", "my-secret-question")]}
    for changed in (body, {**body, "truncation": "my-secret"}, {"my-secret": body}):
        client.post("/v1/score", json=changed)
    ours = [r for r in caplog.records if r.name.startswith(("serve", "rm_core"))]
    assert len(ours) == 3
    assert not any("my-secret" in TextFormatter().format(record) for record in ours)


@pytest.mark.parametrize("sent", ["run-7/step:3", None, "a" * 129, "two words", "é", "a\tb"])
def test_unsafe_request_id_is_replaced(client: TestClient, sent: str | None) -> None:
    headers = {"X-Request-Id": sent.encode()} if sent else {}
    (echoed,) = client.get("/v1/models", headers=headers).headers.get_list("x-request-id")
    if sent == "run-7/step:3":
        assert echoed == sent
    else:
        assert echoed.startswith("req-")


def test_every_documented_route_has_template(client: TestClient) -> None:
    app = client.app
    assert isinstance(app, FastAPI)
    (layer,) = [m for m in app.user_middleware if m.cls is RequestLogMiddleware]
    assert app.user_middleware[0] is layer, "it must be outermost"
    templates = layer.kwargs["route_templates"]
    assert isinstance(templates, set)
    assert {*app.openapi()["paths"], "/", "/docs", "/openapi.json"} <= templates


class Line:
    """Logged outcome of one request to an application under `RequestLogMiddleware`."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "serve")
        self.metrics = Metrics()
        self.in_flight = InFlightRequests()
        self._caplog = caplog

    async def of(
        self, app: ASGIApp, receive: Receive, send: Send | None = None
    ) -> tuple[int, str | None]:
        async def ignore(_: Message) -> None:
            return

        scope = {"type": "http", "method": "POST", "path": "/v1/score", "headers": []}
        layer = RequestLogMiddleware(
            app,
            metrics=self.metrics,
            in_flight=self.in_flight,
            echo_request_id=True,
            route_templates={"/v1/score"},
        )
        with contextlib.suppress(asyncio.CancelledError, OSError, ZeroDivisionError):
            await layer(scope, receive, send or ignore)
        (record,) = [record for record in self._caplog.records if record.msg == "request"]
        fields = vars(record)["fields"]
        metrics = read(self.metrics.snapshot())
        status = str(fields["status"])
        assert metrics[series("skyreward_requests_total", route="/v1/score", status=status)] == 1
        assert self.in_flight.number == 0
        assert current_request().id == "-"
        return fields["status"], fields.get("code")


async def body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def disconnect() -> Message:
    return {"type": "http.disconnect"}


async def answer(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


GONE = (499, "client_closed_request")


def test_disconnected_client_is_499(caplog: pytest.LogCaptureFixture) -> None:
    async def responds_to_nobody(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await answer(send)

    assert asyncio.run(Line(caplog).of(responds_to_nobody, disconnect)) == GONE


def test_cancelled_request_is_499(caplog: pytest.LogCaptureFixture) -> None:
    async def cancelled(_: Scope, __: Receive, ___: Send) -> None:
        raise asyncio.CancelledError

    assert asyncio.run(Line(caplog).of(cancelled, body)) == GONE


def test_response_that_cannot_be_sent_is_499(caplog: pytest.LogCaptureFixture) -> None:
    async def answers(_: Scope, __: Receive, send: Send) -> None:
        await answer(send)

    async def broken(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the connection is lost")

    assert asyncio.run(Line(caplog).of(answers, body, broken)) == GONE


def test_response_that_breaks_off_is_500(caplog: pytest.LogCaptureFixture) -> None:
    async def breaks_off(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    assert asyncio.run(Line(caplog).of(breaks_off, body)) == (500, "internal_error")


def test_disconnect_after_complete_response_keeps_status(caplog: pytest.LogCaptureFixture) -> None:
    async def watches(_: Scope, receive: Receive, send: Send) -> None:
        await answer(send)
        await receive()

    assert asyncio.run(Line(caplog).of(watches, disconnect)) == (200, None)


def test_context_set_in_another_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def in_a_task(_: Scope, __: Receive, send: Send) -> None:
        async def handler() -> None:
            current_request().code = "overloaded"
            await answer(send)

        await asyncio.create_task(handler())

    assert asyncio.run(Line(caplog).of(in_a_task, body)) == (200, "overloaded")


def test_lifespan_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "serve")
    seen: list[str] = []

    async def app(scope: Scope, _: Receive, __: Send) -> None:
        seen.append(scope["type"])

    layer = RequestLogMiddleware(
        app,
        metrics=Metrics(),
        in_flight=InFlightRequests(),
        echo_request_id=True,
        route_templates=(),
    )
    send: Callable[[Message], Awaitable[None]] = lambda _: asyncio.sleep(0)  # noqa: E731
    asyncio.run(layer({"type": "lifespan"}, body, send))
    assert (seen, caplog.records) == (["lifespan"], [])


def test_log_lines_of_wrong_keys_are_throttled_and_counted(
    monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    now = 1_000.0
    # Only the clock of the log: event loops read the clock too.
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: now})
    monkeypatch.setattr("serve.api.middleware.request_log.time", clock)
    settings = Settings.load(api_keys=["correct-horse-battery"])
    service = ScoringService([(settings.models[0], FakeBackend())], settings)
    client = TestClient(create_app(service, settings))
    for _ in range(50):
        assert client.get("/info").status_code == 401
    right = {"Authorization": "Bearer correct-horse-battery"}
    assert client.get("/info", headers=right).status_code == 200
    now += 11
    client.get("/info")
    found = [(line["status"], line.get("left_out")) for line in lines()]
    assert found == [(401, None), (200, None), (401, 49)]
    counted = client.get("/metrics").text
    assert 'skyreward_requests_total{route="/info",status="401"} 51.0' in counted


def test_rust_panic_is_500(
    client: TestClient,
    lines: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class PanicException(BaseException):
        """As raised by a library in Rust: not a subclass of `Exception`."""

    def panic(*_: object) -> None:
        raise PanicException("secret")

    monkeypatch.setattr("serve.scoring.service.ScoringService.resolve_model", panic)
    answer = client.post("/v1/score", json=BODY)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    (line,) = lines()
    assert (line["status"], line["code"]) == (500, "internal_error")
