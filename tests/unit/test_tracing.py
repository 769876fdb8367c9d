"""Traces, as a collector receives them over OTLP/HTTP."""

from __future__ import annotations

import ast
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from conftest import ROOT
from fakes import FakeBackend, conversation, ready
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from waiting import PATIENCE_S, silent_port, until

from serve import __version__
from serve.api.app import create_app
from serve.config.settings import Settings
from serve.scoring.served_model import ScoreResult, ServedModel
from serve.scoring.service import ScoringService

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BODY = {"conversations": [conversation("4")]}


class Collector:
    """A collector that receives traces over OTLP/HTTP, as protobuf."""

    def __init__(self) -> None:
        collector = self
        self.exports: list[tuple[str, ExportTraceServiceRequest]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/x-protobuf"
                request = ExportTraceServiceRequest.FromString(body)
                collector.exports.append((self.path, request))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def spans(self) -> dict[str, Span]:
        return {
            span.name: span
            for _, request in self.exports
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def traced(endpoint: str, backend: FakeBackend, *requests: dict[str, Any]) -> list[int]:
    """Send requests to an application with tracing; return the statuses after all exports."""
    settings = Settings.load(otlp_endpoint=endpoint)
    app = create_app(ScoringService([(settings.models[0], backend)], settings), settings)
    with TestClient(app, raise_server_exceptions=False) as client:
        until(lambda: ready(client))
        asked = [{"method": "POST", "url": "/v1/score", **request} for request in requests]
        return [client.request(**request).status_code for request in asked]


def attributes(span: Span) -> dict[str, Any]:
    return {
        pair.key: getattr(pair.value, str(pair.value.WhichOneof("value")))
        for pair in span.attributes
    }


def test_request_is_span_in_trace_of_client(collector: Collector) -> None:
    backend = FakeBackend()
    backend.delay_s = 0.02
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "step-7"}
    before = time.time_ns()
    assert traced(collector.endpoint, backend, {"json": BODY, "headers": headers}) == [200]
    after = time.time_ns()
    ((path, request),) = collector.exports
    assert path == "/v1/traces"
    resource = {p.key: p.value.string_value for p in request.resource_spans[0].resource.attributes}
    assert resource["service.name"] == "skyreward"
    assert resource["service.version"] == __version__
    span = collector.spans["POST /v1/score"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.kind == Span.SPAN_KIND_SERVER
    assert before <= span.start_time_unix_nano < span.end_time_unix_nano <= after
    found = attributes(span)
    assert found.pop("skyreward.tokens") == found.pop("skyreward.computed_tokens") > 0
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/score",
        "http.response.status_code": 200,
        "skyreward.request_id": "step-7",
        "skyreward.client": "anonymous",
        "skyreward.model": "demo",
        "skyreward.conversations": 1,
        "skyreward.errors": 0,
        "skyreward.cached_tokens": 0,
    }


def test_stages_are_consecutive_child_spans(collector: Collector) -> None:
    backend = FakeBackend()
    backend.delay_s = 0.02
    traced(collector.endpoint, backend, {"json": BODY})
    spans = collector.spans
    request = spans.pop("POST /v1/score")
    assert not request.parent_span_id
    assert {"tokenize", "forward"} <= set(spans) <= {"tokenize", "queue", "forward"}
    at = request.start_time_unix_nano
    for name in ("tokenize", "queue", "forward"):
        if span := spans.get(name):
            assert span.parent_span_id == request.span_id
            assert span.trace_id == request.trace_id
            assert at <= span.start_time_unix_nano <= span.end_time_unix_nano
            at = span.end_time_unix_nano
    assert at <= request.end_time_unix_nano
    waited = at - spans["tokenize"].end_time_unix_nano
    assert waited >= 0.02 * 1e9


def test_failed_and_rejected_requests_have_error_type(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail_unexpectedly(*_: Any) -> ScoreResult:
        raise ZeroDivisionError

    monkeypatch.setattr(ServedModel, "score", fail_unexpectedly)
    backend = FakeBackend()
    requests = [
        {"json": BODY},
        {"json": {"my-secret": 1}, "url": "/v1/rank"},
        {"url": "/my-secret"},
        {"url": "/health", "method": "GET"},
    ]
    assert traced(collector.endpoint, backend, *requests) == [500, 400, 404, 200]
    spans = collector.spans
    assert set(spans) - {"tokenize"} == {"POST /v1/score", "POST /v1/rank", "POST unmatched"}
    failed, refused = spans["POST /v1/score"], spans["POST /v1/rank"]
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert attributes(failed)["error.type"] == "internal_error"
    assert refused.status.code == Status.STATUS_CODE_UNSET
    assert attributes(refused)["error.type"] == "bad_request"
    assert not any(b"my-secret" in r.SerializeToString() for _, r in collector.exports)


def test_unsampled_traceparent_gives_no_span(collector: Collector) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert traced(collector.endpoint, FakeBackend(), {"json": BODY, "headers": headers}) == [200]
    assert collector.exports == []


def test_path_of_endpoint_is_kept(collector: Collector) -> None:
    traced(f"{collector.endpoint}/tenant/traces", FakeBackend(), {"json": BODY})
    assert [path for path, _ in collector.exports] == ["/tenant/traces"]


def test_missing_collector_does_not_delay_requests() -> None:
    with silent_port() as port:
        assert traced(f"http://127.0.0.1:{port}", FakeBackend(), {"json": BODY}) == [200]


def test_silent_collector_does_not_delay_shutdown() -> None:
    """The service shuts down while the export is still unanswered."""
    with socket.create_server(("127.0.0.1", 0)) as listening:  # accepts, and never responds
        endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert traced(endpoint, FakeBackend(), {"json": BODY}) == [200]
        listening.settimeout(PATIENCE_S)
        connection, _ = listening.accept()
        connection.close()


def test_opentelemetry_is_imported_only_for_tracing() -> None:
    importers = {
        path.name
        for path in ROOT.glob("serve/**/*.py")
        if any(
            "opentelemetry" in ast.unparse(node) for node in _imports(ast.parse(path.read_text()))
        )
    }
    assert importers == {"tracing.py"}
    at_import = ast.parse((ROOT / "serve" / "api" / "app.py").read_text()).body
    assert not any("tracing" in ast.unparse(node) for node in at_import if _is_import(node))


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _imports(tree: ast.AST) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree) if _is_import(node))
