"""Startup and shutdown on Ray, and shutdown without: no accepted request is lost."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import preloaded
import pytest
from certificates import write_certificate
from checkpoints import PathOf
from conftest import find_free_port
from preloaded import PreloadedProcess
from processes import processes_of
from prometheus_text import parse
from service_process import assert_refused, start
from waiting import PATIENCE_S, until

CONVERSATION = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


def test_checkpoint_refused_by_replica_stops_startup(tmp_path: Path) -> None:
    output = assert_refused(tmp_path / "checkpoint", "NaN", "contains NaN or infinity")
    assert "starting Ray" in output


@pytest.fixture
def local_service(checkpoint_of: PathOf, tmp_path: Path) -> Iterator[tuple[PreloadedProcess, str]]:
    port, log = find_free_port(), tmp_path / "log"
    folder = checkpoint_of("llama-v0.1")
    process = preloaded.start(("serve", "--local", "--model", folder, "--port", port), log)
    try:
        until(lambda: "ready: POST" in log.read_text())
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()


def test_local_mode_returns_same_rewards_as_ray(
    local_service: tuple[PreloadedProcess, str], http: httpx.Client
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


def assert_private(service: int, key: str, ingress: str) -> Path:
    """No process of Ray has the key in its environment, or sockets in a public folder.

    Returns:
        The private folder of the service.
    """
    children = [p for p in processes_of(service) if p.pid != service]
    assert {"gcs_server", "raylet"} <= {p.name for p in children}
    assert ("haproxy" in {p.name for p in children}) == (ingress == "haproxy")
    assert any("Gateway" in p.title for p in children)
    for child in children:
        with contextlib.suppress(FileNotFoundError):  # the process has ended
            assert key.encode() not in Path(f"/proc/{child.pid}/environ").read_bytes(), child
    (raylet,) = (p for p in children if p.name == "raylet")
    (store,) = re.findall(r"--store_socket_name=(\S+)", raylet.title)
    folder = Path(*Path(store).parts[:3])
    assert folder.name.startswith("sky-")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    return folder


def has_batch_in_flight(client: httpx.Client) -> bool:
    answer = client.get("/metrics")
    return any(
        name == "skyreward_batches_in_flight" and value > 0
        for (name, _), value in parse(answer.text).items()
    )


@pytest.mark.parametrize(("signals", "ingress"), [(1, "haproxy"), (2, "proxy")])
def test_accepted_requests_are_finished_before_shutdown(
    checkpoint_of: PathOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    signals: int,
    ingress: str,
) -> None:
    """One signal finishes requests; a second one ends the process, and the request fails.

    HTTPS and keys are required. Connections with unfinished heads do not delay the shutdown.
    """
    key = "correct-horse-battery"
    monkeypatch.setenv("SKYREWARD_API_KEYS", key)
    if ingress == "proxy":
        monkeypatch.setenv("SKYREWARD_INGRESS", ingress)
    port = find_free_port()
    folder = checkpoint_of("llama-v0.1")
    cert, tls_key = write_certificate(tmp_path)
    options = ["--tls-cert", str(cert), "--tls-key", str(tls_key)]
    trust = ssl.create_default_context(cafile=str(cert))
    process = start("--model", str(folder), "--port", str(port), *options)
    request.addfinalizer(process.kill)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "ready: POST" in line:
            break
    drain = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    drain.start()
    output = "".join(lines)
    assert "loading" in output
    assert "warming up" in output
    assert f"POST https://127.0.0.1:{port}/v1/score" in output
    private = assert_private(process.pid, key, ingress)
    client = httpx.Client(
        base_url=f"https://127.0.0.1:{port}",
        headers={"authorization": f"Bearer {key}"},
        trust_env=False,
        verify=trust,
        timeout=600,
    )
    answers: list[httpx.Response] = []
    num_sent = 400 if signals == 1 else 4000
    many = [[{"role": "user", "content": f"{i} " * 200}, CONVERSATION[1]] for i in range(num_sent)]

    def post() -> None:
        with contextlib.suppress(httpx.HTTPError):
            answers.append(client.post("/v1/score", json={"conversations": many}))

    with (
        client,
        socket.create_connection(("127.0.0.1", port)),
        socket.create_connection(("127.0.0.1", port)) as plain,
        trust.wrap_socket(plain, server_hostname="127.0.0.1") as half_open,
    ):
        large = client.get("/v1/score", headers={"x": "a" * 100_000})
        assert large.status_code == (431 if signals == 2 else 400)  # HAProxy has no 431
        refused = client.get("/v1/models", headers={"authorization": "Bearer another"})
        assert refused.status_code == 401
        small = client.post("/v1/score", json={"conversations": [CONVERSATION]}).json()
        assert "reward" in small["results"][0]
        poster = threading.Thread(target=post)
        poster.start()
        until(lambda: has_batch_in_flight(client))
        half_open.sendall(b"GET /health HTTP/1.1\r\n")
        for _ in range(signals):
            assert not answers, "nothing was in flight when the signal came"
            process.send_signal(signal.SIGTERM)
            until(lambda: any("stopping: finishing" in line for line in lines))
        poster.join()
        code = process.wait(PATIENCE_S)
    drain.join()
    process.stdout.close()
    output = "".join(lines)
    assert "requires no token" not in output
    if signals == 2:
        assert code == 128 + signal.SIGTERM, output
        assert [answer.status_code for answer in answers] != [200]
        return
    assert code == 0, output
    assert "limits neither heads" not in output
    assert not private.exists()
    (answer,) = answers
    assert answer.status_code == 200
    assert sum("reward" in result for result in answer.json()["results"]) == num_sent
