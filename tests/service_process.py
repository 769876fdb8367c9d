"""`skyreward serve` started by a test, and checkpoints that it must refuse."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import httpx
import torch
from checkpoints import SPECS, build_checkpoint, edit_config
from command_line import SKYREWARD
from conftest import find_free_port
from safetensors.torch import load_file, save_file


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


def assert_refused(folder: Path, name: str, says: str, *options: str) -> str:
    """A checkpoint with this damage never becomes ready; returns what is told."""
    build_checkpoint(folder, SPECS["qwen3"])
    damage(folder, name)
    port = find_free_port()
    process = start("--model", str(folder), "--port", str(port), *options)
    seen = statuses_until_exit(process, port)
    output = process.communicate()[0]
    assert process.returncode == 1, output
    assert 200 not in seen
    assert says in output.splitlines()[-1]
    assert "ready: POST" not in output
    return output
