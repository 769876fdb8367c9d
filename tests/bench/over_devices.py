"""A model over two devices: its layers one after another, or every layer in two halves?

What is measured, in two processes on the CPU, since that is where both can be had: rewards of
transformers' own tensor parallelism (`tp_plan="auto"`, gloo) and of
`rm_core.model.placement`, against those of plain transformers in one process, in float32
and bfloat16, for a small random checkpoint of each family. Halves of a matrix product are summed in
another order than the whole; layers that run elsewhere are not changed at all. Times say nothing of
GPUs, and are left out. The last line is one JSON object.

    python tests/bench/over_devices.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from checkpoints import SPECS, build_checkpoint
from reference import CONVERSATIONS, Reference

from rm_core import ModelConfig, Reward, RewardScorer
from rm_core.model.placement import install_transfer_hooks

FAMILIES = ("llama-v0.2", "gemma2", "qwen3")
DTYPES = ("float32", "bfloat16")
_RANKS = 2
_CPU = torch.device("cpu")


def in_halves(rank: int, folder: str, dtype: str, port: int, file: str) -> None:
    """One of the processes that have a half of every layer; the first writes the rewards down."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(_RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(1)
    reference = Reference(Path(folder), getattr(torch, dtype))
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager", tp_plan="auto"
    )
    assert type(model.model.layers[0].mlp.up_proj.weight).__name__ == "DTensor"
    reference.model = model.eval()
    rewards = [reference.reward(messages) for messages in CONVERSATIONS]
    if rank == 0:
        Path(file).write_text(json.dumps(rewards))
    torch.distributed.destroy_process_group()


def rewards_in_halves(folder: Path, dtype: str) -> list[float]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    file = folder / "rewards.json"
    multiprocessing.spawn(in_halves, (str(folder), dtype, port, str(file)), nprocs=_RANKS)
    found: list[float] = json.loads(file.read_text())
    return found


def rewards_by_layers(folder: Path, dtype: str, stages: int) -> list[float]:
    """Ours, one conversation at a time, over so many devices; all of them are the CPU."""
    scorer = RewardScorer.load(ModelConfig(str(folder), device="cpu", dtype=dtype))
    if stages > 1:
        devices = (_CPU,) * stages
        install_transfer_hooks(scorer.loaded_model.model, devices)
        scorer = RewardScorer(dataclasses.replace(scorer.loaded_model, devices=devices))
    results = [scorer.score([messages])[0] for messages in CONVERSATIONS]
    assert all(isinstance(result, Reward) for result in results)
    return [result.reward for result in results]  # type: ignore[union-attr]


def against(found: list[float], expected: list[float]) -> dict[str, float | int]:
    differences = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    return {"largest": max(differences), "equal": sum(d == 0 for d in differences)}


def main() -> int:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"conversations": len(CONVERSATIONS)}
    print(f"{'':22}{'in halves':>24}{'by layers':>24}    (largest difference, equal to the bit)")
    for name in FAMILIES:
        for dtype in DTYPES:
            with tempfile.TemporaryDirectory() as made:
                folder = build_checkpoint(Path(made), SPECS[name])
                reference = Reference(folder, getattr(torch, dtype))
                whole = [reference.reward(messages) for messages in CONVERSATIONS]
                ours = rewards_by_layers(folder, dtype, 1)
                row = {
                    "halves": against(rewards_in_halves(folder, dtype), whole),
                    "layers": against(rewards_by_layers(folder, dtype, 2), ours),
                }
            found[f"{name} {dtype}"] = row
            shown = [f"{r['largest']:.2g}, {r['equal']}/{len(whole)}" for r in row.values()]
            print(f"{name:12}{dtype:10}{shown[0]:>24}{shown[1]:>24}", flush=True)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
