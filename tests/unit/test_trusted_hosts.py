"""Allowed values of the header Host: no foreign page can read responses of a local service."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeBackend
from fastapi.testclient import TestClient
from middleware_harness import KEY, live, read_response
from waiting import PATIENCE_S

from rm_core import ModelLoadError
from serve.api.app import create_app
from serve.config.settings import Settings
from serve.scoring.service import ScoringService

RIGHT = {"Authorization": f"Bearer {KEY}"}
LOCAL = [
    "localhost",
    "LOCALHOST:8000",
    "localhost.",
    "localhost.:8000",
    "127.0.0.1",
    "127.0.0.1:8000",
    "[::1]",
    "[::1]:8000",
]
FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "localhost..",
    ".",
    "evil.example:localhost",
    "127.0.0.1.nip.io",
    "localhost:80:evil.example",
    "[::1",
    "::1",
    "",
    "192.0.2.1",
]


def client_of(*keys: str, **chosen: Any) -> TestClient:
    settings = Settings.load(api_keys=keys, **chosen)
    app = create_app(ScoringService([(settings.models[0], FakeBackend())], settings), settings)
    return TestClient(app)


def status(client: TestClient, host: str, path: str = "/health", **headers: str) -> int:
    return client.get(path, headers={"Host": host, **headers}).status_code


def test_loopback_service_without_keys_accepts_only_local_hosts() -> None:
    client = client_of()
    assert [status(client, host) for host in LOCAL] == [200] * len(LOCAL)
    assert [status(client, host) for host in FOREIGN] == [421] * len(FOREIGN)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/info"), ("GET", "/docs"), ("HEAD", "/health"), ("GET", "/nothing"),
     ("POST", "/v1/score"), ("POST", "/predict"), ("OPTIONS", "/v1/score"),
     ("GET", "/static-offline-docs/swagger-ui.css")],
)  # fmt: skip
def test_every_route_and_method_checks_host(method: str, path: str) -> None:
    client = client_of(cors_origins=["http://evil.example"])
    headers = {"Host": "evil.example", "Origin": "http://evil.example", "Accept": "text/html"}
    answer = client.request(method, path, headers=headers)
    assert answer.status_code == 421
    assert "access-control-allow-origin" not in answer.headers
    if method == "HEAD":
        return
    error = answer.json()["error"]
    message = error["message"] if path != "/predict" else error
    assert "for the host 'evil.example'" in message
    assert "allowed_hosts" in message


def test_misdirected_request_has_native_error() -> None:
    error = client_of().get("/info", headers={"Host": "evil.example"}).json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "misdirected_request")


def test_configured_host_is_allowed() -> None:
    assert status(client_of(host="127.0.0.2"), "127.0.0.2:8000") == 200
    assert status(client_of(host="::1"), "[::1]:8000") == 200
    assert status(client_of(host="127.0.0.2"), "127.0.0.3") == 421


@pytest.mark.parametrize("host", ["localhost", "Localhost", "localhost."])
def test_localhost_in_any_spelling_is_loopback(host: str) -> None:
    assert status(client_of(host=host), "localhost:8000") == 200
    assert status(client_of(host=host), "evil.example") == 421


def test_every_host_is_allowed_with_keys_or_on_other_addresses() -> None:
    assert status(client_of(KEY), "lab.example.org", "/info", **RIGHT) == 200
    assert status(client_of(host="0.0.0.0"), "lab.example.org", "/info") == 200
    assert status(client_of(host="lab.example.org"), "other.example.org") == 200


@pytest.mark.parametrize("keys", [(), (KEY,)])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_allowed_hosts_setting_allows_only_these_and_local_hosts(
    keys: tuple[str, ...], host: str
) -> None:
    client = client_of(*keys, host=host, allowed_hosts="Lab.example.org, [2001:db8::1]")
    for name in ("lab.example.org", "LAB.example.org:80", "[2001:db8::1]:8000", *LOCAL):
        assert status(client, name) == 200, name
    for name in FOREIGN:
        assert status(client, name) == 421, name


def test_star_allows_every_host() -> None:
    assert status(client_of(allowed_hosts=["*"]), "evil.example") == 200


@pytest.mark.parametrize("name", ["http://x", "x:80", "x/y", "", "a b", "*.example.org"])
def test_what_is_no_host_name_is_refused_at_the_start(name: str) -> None:
    with pytest.raises(ModelLoadError, match="is not a host name"):
        Settings.load(allowed_hosts=[name])


def test_missing_host_is_allowed_and_second_host_is_checked() -> None:
    app = client_of().app
    with live(app) as server:
        for heads, expected in (
            ([], 200),
            (["Host: evil.example", "Host: localhost"], 421),
            (["Host: localhost", "Host: evil.example"], 421),
        ):
            with server.connect() as connection:
                connection.settimeout(PATIENCE_S)
                lines = ["GET /health HTTP/1.1", *heads, "Connection: close", "", ""]
                connection.sendall("\r\n".join(lines).encode())
                response, _ = read_response(connection)
                assert response.status == expected
