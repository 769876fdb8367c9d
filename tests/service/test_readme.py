"""The README's examples of clients, each in a process of its own, against a real service."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import SPECS, build_tokenizer
from conftest import ROOT
from transformers import Qwen3Config, Qwen3ForCausalLM

from serve.cli.demo import run_service
from serve.client import ScoringClient

ADDRESS, POLICY = "http://127.0.0.1:8000", "Qwen/Qwen3-0.6B"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if ADDRESS in b]
CONVERSATION = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with run_service("--local") as address:
        yield address


@pytest.fixture(scope="module")
def reward(url: str) -> float:
    with ScoringClient(url) as client:
        return client.score([CONVERSATION])[0]


def block_with(words: str) -> str:
    (block,) = (block for block in BLOCKS if words in block)
    return block


def run(block: str, url: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", block.replace(ADDRESS, url)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert len(BLOCKS) == 4


def test_the_clients(url: str, reward: float, tmp_path: Path) -> None:
    shown = run(block_with("AsyncScoringClient("), url, tmp_path).splitlines()
    assert shown[0] == shown[-1]
    assert shown[0].startswith(f"[{reward!r}, ")
    assert shown[-3].startswith("1 of 2 conversations got no reward: conversation 1: invalid_conv")
    assert shown[-2] == repr(reward)


def test_each_reward_function(url: str, reward: float, tmp_path: Path) -> None:
    shown = run(block_with("openrlhf.reward_func("), url, tmp_path).splitlines()
    assert shown == [f"[{reward!r}]"] * 4 + [repr(reward)] * 2


def test_a_plugin_of_ms_swift(url: str, tmp_path: Path) -> None:
    (tmp_path / "swift").mkdir()
    (tmp_path / "swift" / "rewards.py").write_text("orms = {}")
    assert run(block_with("orms[") + "\nprint(orms)", url, tmp_path).startswith("{'skyreward'")


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
def test_a_trainer_of_trl(url: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(SPECS["qwen3"])
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    block = block_with("GRPOTrainer(").replace(POLICY, str(tmp_path / "policy"))
    # A policy that has learnt nothing never ends, and there may be no GPU.
    small = "GRPOConfig(max_completion_length=8, use_cpu=True, bf16=False, report_to=[], "
    shown = run(block.replace("GRPOConfig(num", f"{small}num"), url, tmp_path)
    assert "rewards/skyreward/mean" in shown
