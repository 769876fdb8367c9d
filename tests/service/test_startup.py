"""Starting and stopping: what would score wrongly never becomes ready, and stopping is orderly."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from certificates import self_signed
from checkpoints import SPECS, build_checkpoint, edit_config
from conftest import free_port
from safetensors.torch import load_file, save_file

SKYREWARD = [sys.executable, "-m", "serve.cli"]
CONVERSATION = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


def start(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SKYREWARD, "serve", *options],
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def statuses_until_exit(process: subprocess.Popen[str], port: int) -> list[int]:
    """What `/ready` answers while a process lives."""
    seen = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        while process.poll() is None:
            try:
                seen.append(client.get("/ready").status_code)
            except httpx.HTTPError:
                seen.append(0)
            time.sleep(0.1)
    return seen


def damage(folder: Path, name: str) -> None:
    """Make a good checkpoint one that must be refused."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    if name == "no head":
        del weights["score.weight"]
    elif name == "two labels":
        weights["score.weight"] = weights["score.weight"].repeat(2, 1)
        edit_config(folder, id2label={"0": "bad", "1": "good"})
    elif name == "NaN":
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    elif name == "pickle only":
        torch.save(weights, folder / "pytorch_model.bin")
        file.unlink()
        return
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no head", "has no score.weight"),
        ("two labels", "declares 2 labels"),
        ("NaN", "holds NaN or infinity"),
        ("pickle only", "only safetensors is loaded"),
    ],
)
@pytest.mark.parametrize("how", [(), ("--local",)], ids=["ray", "local"])
def test_refused_checkpoints(tmp_path: Path, name: str, says: str, how: tuple[str, ...]) -> None:
    folder = build_checkpoint(tmp_path / "checkpoint", SPECS["qwen3"])
    damage(folder, name)
    port = free_port()
    process = start("--model", str(folder), "--port", str(port), *how)
    seen = statuses_until_exit(process, port)
    output = process.communicate()[0]
    assert process.returncode == 1, output
    assert 200 not in seen
    assert says in output.splitlines()[-1]
    assert "ready: POST" not in output


def test_a_taken_port_is_told_before_ray_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start("--port", str(port))
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in output
    assert "starting Ray" not in output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "no/such/folder"], "there is no folder 'no/such/folder'"),
        (["--model", "demo", "--model", "demo"], "two models are called 'demo'"),
        (["--port", "99999"], "port: "),
    ],
)
def test_bad_options_end_with_one_clear_message(options: list[str], says: str) -> None:
    process = start(*options)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert says in output
    assert "Traceback" not in output


@pytest.fixture
def local_service(checkpoint_folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = free_port()
    folder = checkpoint_folder / "llama-v0.1"
    process = start("--local", "--model", str(folder), "--port", str(port))
    assert process.stdout is not None
    for line in process.stdout:
        if "ready: POST" in line:
            break
    yield process, f"http://127.0.0.1:{port}"
    process.kill()
    process.communicate()


def test_without_ray_the_same_rewards(
    local_service: tuple[subprocess.Popen[str], str], http: httpx.Client
) -> None:
    process, url = local_service
    with httpx.Client(base_url=url, trust_env=False) as local:
        here = local.post("/v1/score", json={"conversations": [CONVERSATION]}).json()
        echoed = local.get("/health", headers={"x-request-id": "abc"}).headers
    there = http.post("/v1/score", json={"model": "llama", "conversations": [CONVERSATION]}).json()
    assert here["results"] == there["results"]
    assert here["fingerprint"] == there["fingerprint"]
    assert echoed.get_list("x-request-id") == ["abc"]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_what_was_accepted_is_finished_before_the_end(
    checkpoint_folder: Path, tmp_path: Path, signals: int
) -> None:
    """After one signal; a second one ends it at once, and the caller gets no answer of success.

    Once behind HAProxy, once with HTTPS, which Serve's own proxy speaks.
    """
    port = free_port()
    folder = checkpoint_folder / "llama-v0.1"
    options, scheme, trust = [], "http", ssl.create_default_context()
    if signals == 2:
        cert, key = self_signed(tmp_path)
        options, scheme = ["--tls-cert", str(cert), "--tls-key", str(key)], "https"
        trust.load_verify_locations(cert)
    process = start("--model", str(folder), "--port", str(port), *options)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "ready: POST" in line:
            break
    drain = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
    drain.start()
    said = "".join(lines)
    assert "loading" in said
    assert "warming up" in said
    url = f"{scheme}://127.0.0.1:{port}/v1/score"
    assert f"POST {url}" in said
    answers: list[httpx.Response] = []
    num_sent = 400 if signals == 1 else 4000
    many = [[{"role": "user", "content": f"{i} " * 400}, CONVERSATION[1]] for i in range(num_sent)]

    def post() -> None:
        body = {"conversations": many}
        with contextlib.suppress(httpx.HTTPError):
            answers.append(httpx.post(url, json=body, timeout=120, trust_env=False, verify=trust))

    small = {"conversations": [CONVERSATION]}
    (result,) = httpx.post(url, json=small, trust_env=False, verify=trust).json()["results"]
    assert "reward" in result
    poster = threading.Thread(target=post)
    poster.start()
    time.sleep(1.0)
    for _ in range(signals):
        assert not answers, "nothing was in flight when the signal came"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    poster.join()
    code = process.wait(60)
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
