"""What stands before the gateway of a running service: ports, connections, headers."""

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


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports on which a process listens."""
    links = (Path(f"/proc/{pid}/fd") / fd.name for fd in Path(f"/proc/{pid}/fd").iterdir())
    inodes = {str(link.readlink()) for link in links if link.is_symlink()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == LISTEN and f"socket:[{rest[5]}]" in inodes:
                address, port = local.split(":")
                found.add((readable(address), int(port, 16)))
    return found


def readable(address: str) -> str:
    words = [address[i : i + 8] for i in range(0, len(address), 8)]
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    return str(ipaddress.ip_address(packed))


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:  # gone meanwhile
        return 0


def processes() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def owner(port: int) -> int:
    """The process that listens on a port of 127.0.0.1."""
    for pid in processes():
        try:
            if ("127.0.0.1", port) in listening(pid):
                return pid
        except OSError:  # gone meanwhile, or somebody else's
            continue
    raise AssertionError(f"nobody listens on {port}")


@pytest.fixture
def haproxy(service: str) -> int:
    pid = owner(urlsplit(service).port or 0)
    if "haproxy" not in Path(f"/proc/{pid}/cmdline").read_text():
        pytest.skip("HAProxy does not run on this machine")
    return pid


def test_service_listens_only_on_its_address(service: str, haproxy: int) -> None:
    """Ray's own ports do, and answer no HTTP of ours."""
    assert listening(haproxy) == {("127.0.0.1", urlsplit(service).port)}
    raylet = parent(parent(haproxy))
    mine = [pid for pid in processes() if parent(pid) == raylet]
    ours = {(address, port) for pid in mine for address, port in listening(pid) if is_ours(port)}
    assert len(ours) >= 2  # the gateway, and Serve's proxy behind HAProxy
    assert {address for address, _ in ours} == {"127.0.0.1"}


def is_ours(port: int) -> bool:
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/health", timeout=15, trust_env=False)
        return bool(answer.json() == {"status": "ok"})
    except (httpx.HTTPError, ValueError):
        return False


def test_connections_are_kept_alive(service: str) -> None:
    place = urlsplit(service)
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
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
