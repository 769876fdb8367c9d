"""The ingress of a running service: ports, connections, headers."""

from __future__ import annotations

import http.client
import ipaddress
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

LISTEN = "0A"


def find_listeners(pid: int) -> set[tuple[str, int]]:
    """Return the addresses and ports on which a process listens."""
    links = (Path(f"/proc/{pid}/fd") / fd.name for fd in Path(f"/proc/{pid}/fd").iterdir())
    inodes = {str(link.readlink()) for link in links if link.is_symlink()}
    listeners = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTEN and f"socket:[{rest[5]}]" in inodes:
                address, port = local.split(":")
                listeners.add((format_address(address), int(port, 16)))
    return listeners


def format_address(address: str) -> str:
    words = [address[i : i + 8] for i in range(0, len(address), 8)]
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    return str(ipaddress.ip_address(packed))


def find_parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:  # the process has ended
        return 0


def list_processes() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def find_listening_process(port: int) -> int:
    """Return the process that listens on a port of 127.0.0.1."""
    for pid in list_processes():
        try:
            if ("127.0.0.1", port) in find_listeners(pid):
                return pid
        except OSError:  # ended, or of another user
            continue
    raise AssertionError(f"no process listens on {port}")


@pytest.fixture
def haproxy(service: str) -> int:
    pid = find_listening_process(urlsplit(service).port or 0)
    if "haproxy" not in Path(f"/proc/{pid}/cmdline").read_text():
        pytest.skip("HAProxy does not run on this machine")
    return pid


def test_service_listens_only_on_its_address(service: str, haproxy: int) -> None:
    """Ray's own ports do not serve the HTTP application."""
    assert find_listeners(haproxy) == {("127.0.0.1", urlsplit(service).port)}
    raylet = find_parent(find_parent(haproxy))
    children = [pid for pid in list_processes() if find_parent(pid) == raylet]
    listeners = {
        (address, port)
        for pid in children
        for address, port in find_listeners(pid)
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
