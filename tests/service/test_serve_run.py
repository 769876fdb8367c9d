"""`serve run serve.app:build` and a Serve YAML start what `skyreward serve` starts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml
from checkpoints import PathOf
from conftest import find_free_port
from waiting import PATIENCE_S, until

CONVERSATION = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
DEFAULT_PORT = 8000  # `serve run` with an import path always uses Serve's default port


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def config_file(tmp_path: Path, folder: Path, port: int) -> Path:
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "rewards",
                "route_prefix": "/",
                "import_path": "serve.app:build",
                "args": {"models": [{"name": str(folder), "alias": "llama"}]},
                "deployments": [{"name": "Gateway", "user_config": {"max_messages": 77}}],
            }
        ],
    }
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


# Both start the same application; arguments are parsed as those of `skyreward serve`.
@pytest.mark.parametrize(
    "target_kind", [pytest.param("import path", marks=pytest.mark.slow), "yaml"]
)
def test_serve_run_starts_same_application(
    tmp_path: Path, checkpoint_of: PathOf, http: httpx.Client, target_kind: str
) -> None:
    folder = checkpoint_of("llama-v0.1")
    port = DEFAULT_PORT if target_kind == "import path" else find_free_port()
    if is_taken(port):
        pytest.skip(f"port {port} is taken, and `serve run` with an import path needs it")
    target = (
        ["serve.app:build", f"models=llama={folder}"]
        if target_kind == "import path"
        else [str(config_file(tmp_path, folder, port))]
    )
    serve = Path(sys.executable).parent / "serve"
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(serve), "run", *target],
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        answer = score_when_ready(process, port)
        info = httpx.get(
            f"http://127.0.0.1:{port}/info", trust_env=False, timeout=PATIENCE_S
        ).json()
        for warning in ("this Ray cluster requires no token", "Serve's proxy limits neither"):
            until(lambda: warning in log.read_text())  # noqa: B023
    finally:
        # Not SIGINT: background jobs of a shell and their children may ignore it.
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    expected = http.post(
        "/v1/score", json={"model": "llama", "conversations": [CONVERSATION]}
    ).json()
    assert answer["results"] == expected["results"]
    assert answer["fingerprint"] == expected["fingerprint"]
    assert info["settings"]["max_messages"] == (1000 if target_kind == "import path" else 77)


def score_when_ready(process: subprocess.Popen[bytes], port: int) -> dict[str, object]:
    deadline = time.monotonic() + 2 * PATIENCE_S
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE_S
    ) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if client.get("/ready").status_code == 200:
                    answer = client.post("/v1/score", json={"conversations": [CONVERSATION]})
                    return dict(answer.json())
            except httpx.HTTPError:
                pass
            time.sleep(0.3)
    raise AssertionError("the application never became ready")
