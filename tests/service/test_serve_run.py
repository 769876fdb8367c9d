"""`serve run serve.app:build` and a Serve YAML start what `skyreward serve` starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

CONVERSATION = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
PORT = 8000  # `serve run` with an import path listens on Serve's default


def config_file(tmp_path: Path, folder: Path) -> Path:
    config = {
        "http_options": {"host": "127.0.0.1", "port": PORT},
        "applications": [
            {
                "name": "rewards",
                "route_prefix": "/",
                "import_path": "serve.app:build",
                "args": {"models": [{"name": str(folder), "alias": "llama"}]},
            }
        ],
    }
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.mark.parametrize("how", ["import path", "yaml"])
def test_serve_run(tmp_path: Path, checkpoint_folder: Path, http: httpx.Client, how: str) -> None:
    folder = checkpoint_folder / "llama-v0.1"
    target = (
        ["serve.app:build", f"models=llama={folder}"]
        if how == "import path"
        else [str(config_file(tmp_path, folder))]
    )
    serve = Path(sys.executable).parent / "serve"
    process = subprocess.Popen(
        [str(serve), "run", *target],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        answer = score_when_ready(process)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    expected = http.post(
        "/v1/score", json={"model": "llama", "conversations": [CONVERSATION]}
    ).json()
    assert answer["results"] == expected["results"]
    assert answer["fingerprint"] == expected["fingerprint"]


def score_when_ready(process: subprocess.Popen[bytes]) -> dict[str, object]:
    deadline = time.monotonic() + 120
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", trust_env=False) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if client.get("/ready").status_code == 200:
                    answer = client.post("/v1/score", json={"conversations": [CONVERSATION]})
                    return dict(answer.json())
            except httpx.HTTPError:
                pass
            time.sleep(0.3)
    raise AssertionError("the application never became ready")
