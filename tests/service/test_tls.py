"""HTTPS with certificate files, without Ray; `test_startup_on_ray` has HTTPS on Ray."""

from __future__ import annotations

import signal
import socket
import ssl
from pathlib import Path

import httpx
import preloaded
import pytest
from certificates import write_certificate
from conftest import find_free_port
from waiting import PATIENCE_S, until

BODY = {
    "conversations": [
        [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
    ]
}


def test_local_service_serves_https(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path)
    port = find_free_port()
    log = tmp_path / "log"
    files = ("--tls-cert", cert, "--tls-key", key)
    process = preloaded.start(("serve", "--local", "--port", port, *files), log)
    try:
        until(lambda: f"ready: POST https://127.0.0.1:{port}/v1/score" in log.read_text())
        trust = ssl.create_default_context(cafile=str(cert))
        url = f"https://127.0.0.1:{port}"
        with httpx.Client(
            base_url=url, verify=trust, trust_env=False, timeout=PATIENCE_S
        ) as client:
            (result,) = client.post("/v1/score", json=BODY, timeout=PATIENCE_S).json()["results"]
            assert isinstance(result["reward"], float)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=PATIENCE_S)
        # Connections without a complete head or handshake do not delay the shutdown.
        with (
            socket.create_connection(("127.0.0.1", port)),
            socket.create_connection(("127.0.0.1", port)) as plain,
            trust.wrap_socket(plain, server_hostname="127.0.0.1") as half_open,
        ):
            half_open.sendall(b"GET /health HTTP/1.1\r\n")
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
