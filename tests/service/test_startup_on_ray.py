"""Startup and shutdown on Ray, and shutdown without: no accepted request is lost."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import ssl
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from certificates import write_certificate
from checkpoints import PathOf
from conftest import find_free_port
from processes import processes_of
from prometheus_text import parse
from service_process import assert_refused, start
from waiting import PATIENCE_S, until

CONVERSATION = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


def test_checkpoint_refused_by_replica_stops_startup(tmp_path: Path) -> None:
    output = assert_refused(tmp_path / "checkpoint", "NaN", "contains NaN or infinity")
    assert "starting Ray" in output


@pytest.fixture
def local_service(checkpoint_of: PathOf) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = find_free_port()
    folder = checkpoint_of("llama-v0.1")
    process = start("--local", "--model", str(folder), "--port", str(port))
    assert process.stdout is not None
    for line in process.stdout:
        if "ready: POST" in line:
            break
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.communicate()


def test_local_mode_returns_same_rewards_as_ray(
    local_service: tuple[subprocess.Popen[str], str], http: httpx.Client
) -> None:
    process, url = local_service
    with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE_S) as local:
        local_body = local.post("/v1/score", json={"conversations": [CONVERSATION]}).json()
        echoed = local.get("/health", headers={"x-request-id": "abc"}).headers
    ray_body = http.post(
        "/v1/score", json={"model": "llama", "conversations": [CONVERSATION]}
    ).json()
    assert local_body["results"] == ray_body["results"]
    assert local_body["fingerprint"] == ray_body["fingerprint"]
    assert echoed.get_list("x-request-id") == ["abc"]
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 0


def test_ray_processes_expose_neither_keys_nor_sockets(
    checkpoint_of: PathOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process of Ray has API keys in its environment or sockets in a public folder.

    Connections with unfinished heads do not delay the shutdown.
    """
    monkeypatch.setenv("SKYREWARD_API_KEYS", "correct-horse-battery")
    port = find_free_port()
    process = start("--model", str(checkpoint_of("llama-v0.1")), "--port", str(port))
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "ready: POST" in line:
            break
    children = [p for p in processes_of(process.pid) if p.pid != process.pid]
    assert {"gcs_server", "raylet", "haproxy"} <= {p.name for p in children}
    assert any("Gateway" in p.title for p in children)
    for child in children:
        with contextlib.suppress(FileNotFoundError):  # the process has ended
            assert b"correct-horse" not in Path(f"/proc/{child.pid}/environ").read_bytes(), child
    (raylet,) = (p for p in children if p.name == "raylet")
    (store,) = re.findall(r"--store_socket_name=(\S+)", raylet.title)
    folder = Path(*Path(store).parts[:3])
    assert folder.name.startswith("sky-")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    url = f"http://127.0.0.1:{port}"
    keys = {"authorization": "Bearer correct-horse-battery"}
    assert httpx.get(f"{url}/v1/models", trust_env=False, timeout=PATIENCE_S).status_code == 401
    answer = httpx.get(f"{url}/v1/models", headers=keys, trust_env=False, timeout=PATIENCE_S)
    assert answer.status_code == 200
    with socket.create_connection(("127.0.0.1", port)) as half_open:
        half_open.sendall(b"GET /health HTTP/1.1\r\n")
        process.send_signal(signal.SIGTERM)
        output = "".join(lines) + process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 0, output
    for warning in ("requires no token", "limits neither heads"):
        assert warning not in output
    assert not folder.exists()


def has_batch_in_flight(url: str, trust: ssl.SSLContext) -> bool:
    answer = httpx.get(f"{url}/metrics", timeout=PATIENCE_S, trust_env=False, verify=trust)
    return any(
        name == "skyreward_batches_in_flight" and value > 0
        for (name, _), value in parse(answer.text).items()
    )


@pytest.mark.parametrize("signals", [1, 2])
def test_accepted_requests_are_finished_before_shutdown(
    checkpoint_of: PathOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: int
) -> None:
    """One signal finishes requests; a second one ends the process, and the request fails.

    Once with HTTPS of HAProxy, once with HTTPS of Serve's own proxy.
    """
    port = find_free_port()
    folder = checkpoint_of("llama-v0.1")
    cert, key = write_certificate(tmp_path)
    options = ["--tls-cert", str(cert), "--tls-key", str(key)]
    trust = ssl.create_default_context(cafile=str(cert))
    if signals == 2:
        monkeypatch.setenv("SKYREWARD_INGRESS", "proxy")
    process = start("--model", str(folder), "--port", str(port), *options)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "ready: POST" in line:
            break
    drain = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
    drain.start()
    output = "".join(lines)
    assert "loading" in output
    assert "warming up" in output
    url = f"https://127.0.0.1:{port}/v1/score"
    large = httpx.get(
        url, headers={"x": "a" * 100_000}, trust_env=False, verify=trust, timeout=PATIENCE_S
    )
    assert large.status_code == (431 if signals == 2 else 400)  # HAProxy has no 431
    assert f"POST {url}" in output
    answers: list[httpx.Response] = []
    num_sent = 400 if signals == 1 else 4000
    many = [[{"role": "user", "content": f"{i} " * 400}, CONVERSATION[1]] for i in range(num_sent)]

    def post() -> None:
        body = {"conversations": many}
        with contextlib.suppress(httpx.HTTPError):
            answers.append(httpx.post(url, json=body, timeout=600, trust_env=False, verify=trust))

    small = {"conversations": [CONVERSATION]}
    (result,) = httpx.post(
        url, json=small, trust_env=False, verify=trust, timeout=PATIENCE_S
    ).json()["results"]
    assert "reward" in result
    poster = threading.Thread(target=post)
    poster.start()
    until(lambda: has_batch_in_flight(f"https://127.0.0.1:{port}", trust))
    for _ in range(signals):
        assert not answers, "nothing was in flight when the signal came"
        process.send_signal(signal.SIGTERM)
        until(lambda: any("stopping: finishing" in line for line in lines))
    poster.join()
    code = process.wait(PATIENCE_S)
    drain.join()
    process.stdout.close()
    if signals == 2:
        assert code == 128 + signal.SIGTERM, "".join(lines)
        assert [answer.status_code for answer in answers] != [200]
        return
    assert code == 0, "".join(lines)
    (answer,) = answers
    assert answer.status_code == 200
    assert sum("reward" in result for result in answer.json()["results"]) == num_sent
