"""HTTPS with certificate files, without Ray; `test_startup_on_ray` has HTTPS on Ray."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from certificates import write_certificate
from conftest import find_free_port
from waiting import PATIENCE_S

BODY = {
    "conversations": [
        [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
    ]
}


def test_local_service_serves_https(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path)
    port = find_free_port()
    command = [sys.executable, "-m", "serve.cli.main", "serve", "--local", "--port", str(port)]
    command += ["--tls-cert", str(cert), "--tls-key", str(key)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stderr is not None
        ready_line = next(line for line in process.stderr if "ready: POST" in line)
        assert f"https://127.0.0.1:{port}/v1/score" in ready_line
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
        process.communicate()
