"""A tokenizer that never returns does not keep the service from stopping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import httpx
from conftest import ROOT, find_free_port
from waiting import PATIENCE_S, until

_SERVICE = """
import sys, threading
from rm_core import ChatEncoder
from serve.cli.main import main

encode = ChatEncoder.encode_all

def stuck(self, conversations, *args, **options):
    if any("trigger" in str(c) for c in conversations):
        threading.Event().wait()
    return encode(self, conversations, *args, **options)

ChatEncoder.encode_all = stuck
main(["serve", "--local", "--model", "one=demo", "--model", "two=demo", "--port", sys.argv[1]])
"""


def test_stuck_tokenizer_affects_neither_other_models_nor_shutdown() -> None:
    port = find_free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-c", _SERVICE, str(port)], cwd=ROOT)

    client = httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False)

    def is_ready() -> bool:
        try:
            return client.get("/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def post(model: str, text: str, timeout_s: float) -> int:
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "4"}]
        return client.post(
            "/v1/score",
            json={"model": model, "conversations": [turns]},
            headers={"X-Request-Timeout-Seconds": str(timeout_s)},
        ).status_code

    try:
        until(is_ready)
        assert post("one", "hi", PATIENCE_S) == 200
        assert post("one", "trigger", 0.5) == 408
        assert post("two", "hi", PATIENCE_S) == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        client.close()
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
