"""The ingress of a running service: ports, connections, headers."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from waiting import until

# A process without /proc/PID/fd is another user's, or has ended.
_GONE = (psutil.AccessDenied, psutil.NoSuchProcess)


def find_listeners(process: psutil.Process) -> set[tuple[str, int]]:
    """Return the addresses and ports on which a process listens."""
    try:
        connections = process.net_connections("tcp")
    except _GONE:
        return set()
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


def find_listening_process(port: int) -> psutil.Process | None:
    """Return the process that listens on a port of 127.0.0.1; None while there is none."""
    return next(
        (p for p in psutil.process_iter() if ("127.0.0.1", port) in find_listeners(p)), None
    )


@pytest.fixture
def haproxy(service: str) -> psutil.Process:
    found: list[psutil.Process] = []

    def find() -> bool:  # HAProxy may be replacing its worker process
        process = find_listening_process(urlsplit(service).port or 0)
        found.extend([process] if process else [])
        return process is not None

    until(find, f"no process listens at {service}")
    if "haproxy" not in " ".join(found[0].cmdline()):
        pytest.skip("HAProxy does not run on this machine")
    return found[0]


def test_service_listens_only_on_its_address(service: str, haproxy: psutil.Process) -> None:
    """Ray's own ports do not serve the HTTP application."""
    assert find_listeners(haproxy) == {("127.0.0.1", urlsplit(service).port)}
    actor = haproxy.parent()
    assert actor is not None
    raylet = actor.parent()
    assert raylet is not None
    listeners = {
        (address, port)
        for child in raylet.children()
        for address, port in find_listeners(child)
        if serves_health(port)
    }
    assert len(listeners) >= 2  # the gateway, and Serve's proxy behind HAProxy
    assert {address for address, _ in listeners} == {"127.0.0.1"}


def serves_health(port: int) -> bool:
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/health", timeout=15, trust_env=False)
        return bool(answer.json() == {"status": "ok"})
    except (httpx.HTTPError, ValueError):
        return False


def test_connections_are_kept_alive(service: str) -> None:
    url = urlsplit(service)
    connection = http.client.HTTPConnection(url.hostname or "", url.port)
    sockets = []
    for _ in range(3):
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        sockets.append(connection.sock)
    connection.close()
    assert len(set(sockets)) == 1
    assert sockets[0] is not None


def test_large_body_reaches_gateway(http: httpx.Client) -> None:
    body = b'{"conversations": [], "nonsense": "' + b"x" * (31 * 2**20) + b'"}'
    answer = http.post("/v1/score", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "unknown field" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Request-Id", b"\xff\xfe"),
        ("X-Request-Id", b"a b"),
        ("X-Request-Disconnect-Disabled", b"\xff"),
        ("serve_multiplexed_model_id", b"\xff"),
    ],
)
def test_invalid_headers_that_serve_reads_are_harmless(
    http: httpx.Client, name: str, value: bytes
) -> None:
    answer = http.get("/v1/models", headers={name.encode(): value})
    assert answer.status_code == 200
    (identifier,) = answer.headers.get_list("x-request-id")
    assert identifier.startswith("req-")
