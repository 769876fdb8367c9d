"""On CUDA: a model that sleeps gives the device's memory back, and wakes with the same rewards."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from checkpoints import SPECS, build_checkpoint
from reference import talk

from rm_core import BatchConfig, ModelConfig, Reward, RewardScorer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CONVERSATIONS = [talk(f"{i} " * 60, f"{i + 1} " * 60) for i in range(20)]


def rewards(scorer: RewardScorer) -> list[float]:
    results = scorer.score(CONVERSATIONS)
    assert all(isinstance(result, Reward) for result in results), results
    return [result.reward for result in results if isinstance(result, Reward)]


@pytest.mark.parametrize("compiled", [False, True])
def test_sleep_gives_memory_back(compiled: bool, tmp_path: Path) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    folder = build_checkpoint(tmp_path / "llama", SPECS["llama-v0.2"])
    config = ModelConfig(str(folder), device="cuda", compile=compiled, deterministic=not compiled)
    scorer = RewardScorer.load(config, BatchConfig(8_192, prefix_cache_bytes=64 << 20))
    expected = rewards(scorer)
    for _ in range(3):
        awake = torch.cuda.memory_reserved() - reserved
        assert awake >= 64 << 20  # the prefix cache
        scorer.sleep()
        assert torch.cuda.memory_allocated() - allocated <= 1 << 20
        assert torch.cuda.memory_reserved() - reserved <= awake / 4
        devices = {parameter.device.type for parameter in scorer.loaded_model.model.parameters()}
        assert devices == {"cpu"}
        scorer.wake()
        assert rewards(scorer) == (pytest.approx(expected, abs=1e-4) if compiled else expected)
