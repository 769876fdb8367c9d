"""Authentication, CORS, and requests that are rejected before the body is read or parsed."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import FakeBackend, ready
from fastapi.testclient import TestClient
from middleware_harness import KEY, OTHER_KEY, create_harness, live, read_all
from starlette.websockets import WebSocketDisconnect
from waiting import until

from serve.api.app import create_app
from serve.api.compat.errors import (
    ERROR_FORMATS,
    format_sglang_error,
    format_sglang_native_error,
    format_vllm_error,
)
from serve.api.middleware.access import OPEN_PATHS, KeyRing
from serve.api.middleware.request_log import REQUEST_CONTEXT_KEY
from serve.config.settings import Settings
from serve.scoring.service import ScoringService
from serve.telemetry.logging import RequestContext

RIGHT = {"Authorization": f"Bearer {KEY}"}
WRONG = [
    {},
    {"Authorization": ""},
    {"Authorization": KEY},
    {"Authorization": f"Bearer {KEY}x"},
    {"Authorization": "Bearer "},
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": f"Bearer {KEY}, Bearer {KEY}"},
    {"X-Api-Key": KEY},
    {"Authorization": "Bearer \xff\xfe"},
]
OTHER_PATHS = (
    "/",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/nothing",
    "/health/",
    "//health",
    "/info/",
)


def is_authentication_error(path: str, body: Any) -> bool:
    """Whether a body is the authentication error of the path's wire format."""
    if path == "/predict":
        return set(body) == {"error", "error_type"} and "API key" in body["error"]
    if path == "/v1/score/evaluation":
        return bool(body == {"detail": "Invalid API key."})
    if ERROR_FORMATS.get(path) in (
        format_vllm_error,
        format_sglang_error,
        format_sglang_native_error,
    ):
        return bool(body == {"error": "Unauthorized"})
    error = body["error"]
    return (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")


def client_of(*keys: str, **chosen: Any) -> TestClient:
    settings = Settings.load(api_keys=keys, **chosen)
    app = create_app(ScoringService([(settings.models[0], FakeBackend())], settings), settings)
    return TestClient(app, raise_server_exceptions=False, follow_redirects=False)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(OTHER_KEY, KEY) as client:
        until(lambda: ready(client))
        yield client


def operations(client: TestClient) -> Iterator[tuple[str, str, dict[str, Any]]]:
    document = client.get("/openapi.json", headers=RIGHT).json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def test_every_route_requires_key_except_open_paths(client: TestClient) -> None:
    found = list(operations(client))
    assert len(found) > 6
    for path, method, _ in [*found, *((path, "GET", {}) for path in OTHER_PATHS)]:
        body = {"json": {}} if method == "POST" else {}
        for headers in WRONG:
            sent = {name: value.encode("latin-1") for name, value in headers.items()}
            answer = client.request(method, path, headers=sent, **body)  # type: ignore[arg-type]
            if path in OPEN_PATHS:
                assert answer.status_code != 401
                continue
            assert answer.status_code == 401, (path, headers)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert is_authentication_error(path, answer.json()), path
        assert client.request(method, path, headers=RIGHT, **body).status_code != 401  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "X"]
)
def test_every_method_requires_key(client: TestClient, method: str) -> None:
    assert client.request(method, "/v1/models").status_code == 401
    assert client.request(method, "/v1/models", headers=RIGHT).status_code != 401
    open_to_all = client.request(method, "/health").status_code != 401
    assert open_to_all == (method in ("GET", "HEAD"))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
def test_every_key_and_any_case_of_scheme_is_accepted(client: TestClient, scheme: str) -> None:
    for key in (KEY, OTHER_KEY):
        answer = client.get("/v1/models", headers={"Authorization": f"{scheme} {key}"})
        assert answer.status_code == 200


def test_two_authorization_headers_are_rejected(client: TestClient) -> None:
    headers = [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")]
    assert client.get("/info", headers=headers).status_code == 401  # type: ignore[arg-type]


def test_all_routes_are_open_without_keys() -> None:
    with client_of() as client:
        for path, method, operation in operations(client):
            assert client.request(method, path).status_code != 401
            assert "security" not in operation
        assert client.get("/docs").status_code == 200


def test_openapi_documents_keys_and_errors(client: TestClient) -> None:
    document = client.get("/openapi.json", headers=RIGHT).json()
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for path, _, operation in operations(client):
        assert bool(operation["security"]) == (path not in OPEN_PATHS)
        assert ("401" in operation["responses"]) == (path not in OPEN_PATHS)
    score = document["paths"]["/v1/score"]["post"]["responses"]
    assert {"400", "401", "404", "408", "413", "415", "429", "500", "503"} <= set(score)


def test_websocket_is_closed(client: TestClient) -> None:
    for headers in ({}, RIGHT):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/x", headers=headers):
            pass


def test_request_context_names_client_of_key() -> None:
    harness = create_harness(KEY, OTHER_KEY)
    records: list[RequestContext] = []

    class Outermost:
        def __init__(self, app: Any) -> None:
            self._app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self._app(scope, receive, send)
            if scope["type"] == "http":
                records.append(scope[REQUEST_CONTEXT_KEY])

    client = TestClient(Outermost(harness.app))
    for headers in (RIGHT, {"Authorization": f"Bearer {OTHER_KEY}"}, {}):
        client.post("/size", json={}, headers=headers)
    ring = KeyRing([(KEY, ""), (OTHER_KEY, "")])
    names = [ring.find_name(KEY.encode()), ring.find_name(OTHER_KEY.encode()), "anonymous"]
    assert [record.client for record in records] == names
    assert [record.code for record in records] == [None, None, "invalid_api_key"]


ORIGIN = "https://lab.example.org"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-request-id",
}


def test_cors_origins_setting_allows_origin() -> None:
    with client_of(KEY, cors_origins=[ORIGIN]) as client:
        preflight = client.options("/v1/score", headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        for headers, status in ((RIGHT, 200), ({}, 401)):
            answer = client.get("/v1/models", headers={**headers, "Origin": ORIGIN})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == ORIGIN
        foreign = {**PREFLIGHT, "Origin": "https://elsewhere.example.org"}
        refused = client.options("/v1/score", headers=foreign)
        assert "access-control-allow-origin" not in refused.headers
        assert client.options("/v1/score", headers={"Origin": ORIGIN}).status_code == 401


def test_cors_is_disabled_by_default(client: TestClient) -> None:
    for headers in (PREFLIGHT, {**RIGHT, "Origin": ORIGIN}):
        answer = client.options("/v1/score", headers=headers)
        assert "access-control-allow-origin" not in answer.headers
        assert answer.status_code in (401, 405)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Content-Type": "text/plain"}, "text/plain"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "Content-Type: application/json"),
        ({"Content-Type": "application/jsonl"}, "jsonl"),
        ({"Content-Type": "json"}, "json"),
        ({"Content-Type": ""}, "Content-Type"),
        ({"Content-Type": "application/json; charset=latin-1"}, "latin-1"),
        ({"Content-Type": "application/json; charset=utf-16"}, "utf-16"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "gzip"),
        ({"Content-Type": "application/" + "x" * 5_000}, "characters"),
    ],
)
def test_body_that_is_not_plain_json_is_415(
    client: TestClient, headers: dict[str, str], expected: str
) -> None:
    answer = client.post("/v1/score", content=b"{}", headers={**RIGHT, **headers})
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"
    assert expected in answer.json()["error"]["message"]
    assert len(answer.content) < 1_000


def test_body_without_content_type_is_415(client: TestClient) -> None:
    answer = client.post("/v1/score", content=b"{}", headers=RIGHT)
    assert answer.status_code == 415
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/vnd.api+json",
    ],
)
def test_json_content_types_are_accepted(client: TestClient, content_type: str) -> None:
    headers = {**RIGHT, "Content-Type": content_type, "Content-Encoding": "identity"}
    body = b'{"conversations": []}'
    assert client.post("/v1/score", content=body, headers=headers).status_code == 200


def test_content_length_above_limit_is_413() -> None:
    client = TestClient(create_harness(max_body_bytes=10).app)
    for number, status in ((10, 200), (11, 413)):
        answer = client.post("/size", content=b"1" * number, headers={"Content-Type": "a/json"})
        assert answer.status_code == 415
        headers = {"Content-Type": "application/json"}
        answer = client.post("/size", content=b"1" * number, headers=headers)
        assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == "body_too_large"
    assert "10 bytes" in error["message"]


@pytest.mark.parametrize(
    "sent", ["", "soon", "nan", "inf", "-inf", "0", "-1", "1_0", "1e999", "5,6", "x" * 9_000]
)
def test_invalid_timeout_header_is_400(client: TestClient, sent: str) -> None:
    headers = {**RIGHT, "X-Request-Timeout-Seconds": sent}
    answer = client.post("/v1/score", json={"conversations": []}, headers=headers)
    assert answer.status_code == 400
    assert "X-Request-Timeout-Seconds" in answer.json()["error"]["message"]
    assert len(answer.content) < 1_000


@pytest.mark.parametrize("sent", ["5", "0.5", " 30 ", "1e3", "1e300"])
def test_positive_timeout_header_is_accepted(client: TestClient, sent: str) -> None:
    headers = {**RIGHT, "X-Request-Timeout-Seconds": sent}
    answer = client.post("/v1/score", json={"conversations": []}, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("origin", ["lab.example.org", "https://lab.example.org/", "http://", "**"])
def test_what_is_no_origin_stops_the_start(origin: str) -> None:
    with pytest.raises(Exception, match="is not an origin"):
        Settings.load(cors_origins=[origin])
    assert Settings.load(cors_origins="https://a.org http://localhost:3000,*").cors_origins


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_open_paths_answer_head_requests(path: str) -> None:
    settings = Settings.load(api_keys=[KEY])
    app = create_app(ScoringService([(settings.models[0], FakeBackend())], settings), settings)
    with live(app) as server, server.client() as client, server.connect() as connection:
        until(lambda: client.get("/ready").status_code == 200)
        request = f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n"
        connection.sendall(f"{request}\r\n{request}Connection: close\r\n\r\n".encode())
        answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.count(b"\r\n\r\n") == 2
    assert answers.endswith(b"\r\n\r\n")  # without bodies


@pytest.mark.parametrize("path", ["/", *sorted(OPEN_PATHS), "/info", "/docs", "/nothing"])
def test_every_response_has_nosniff_header(client: TestClient, path: str) -> None:
    for headers in ({}, RIGHT):
        answer = client.get(path, headers=headers)
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
    assert client.post("/v1/score", json={}).headers["x-content-type-options"] == "nosniff"


def test_unexpected_exception_response_has_nosniff_header(client: TestClient) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoringService, "resolve_model", lambda *_: 1 / 0)
        body = {"conversations": [[{"role": "user", "content": "x"}]]}
        answer = client.post("/v1/score", json=body, headers=RIGHT)
    assert answer.status_code == 500
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_docs_pages_csp_allows_only_own_scripts(client: TestClient, path: str) -> None:
    answer = client.get(path, headers=RIGHT)
    assert answer.status_code == 200
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    inline = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    digests = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in inline
    ]
    assert policy["script-src"].split() == ["'self'", *digests]
    for source in re.findall(r"(?:src|href)=\"([^\"]+)\"", answer.text):
        assert client.get(source, headers=RIGHT).status_code == 200, source
