"""On CUDA: batches and conversations that need more memory than available."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import SPECS, build_checkpoint
from reference import Messages, talk

from rm_core import BatchConfig, ModelConfig, Reward, RewardScorer, ScoreError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> RewardScorer:
    folder = build_checkpoint(tmp_path_factory.mktemp("gpu") / "llama", SPECS["llama-v0.2"])
    return load(folder)


def load(folder: Path) -> RewardScorer:
    config = ModelConfig(str(folder), device="cuda", attention="eager")
    return RewardScorer.load(config, BatchConfig(32_768))


def rewards(scorer: RewardScorer, conversations: list[Messages]) -> list[float]:
    results = scorer.score(conversations)
    assert all(isinstance(result, Reward) for result in results), results
    return [result.reward for result in results if isinstance(result, Reward)]


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Make tensors of more than 1 MiB fail; smaller tensors can use 16 MiB together.

    The allocator takes 20 MiB from the device for each larger tensor; the rest of such blocks is
    filled first.
    """
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    allowed = torch.cuda.memory_reserved() + (16 << 20)
    ballast = []
    try:
        torch.cuda.set_per_process_memory_fraction(allowed / total)
        with contextlib.suppress(torch.OutOfMemoryError):
            while True:
                ballast.append(torch.empty(2 << 20, dtype=torch.uint8, device="cuda"))
        yield
    finally:
        ballast.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_batch_without_memory_is_halved_without_losing_conversations(
    scorer: RewardScorer, caplog: pytest.LogCaptureFixture
) -> None:
    conversations = [talk(f"{i} " * 60, f"{i + 1} " * 60) for i in range(90)]
    before = rewards(scorer, conversations)
    with little_memory(), caplog.at_level(logging.ERROR):
        halved = rewards(scorer, conversations)
    assert "a batch of 90 conversations failed" in caplog.text
    assert "OutOfMemoryError" in caplog.text
    # bfloat16, and products of other shapes; rewards in the wrong order would be far off.
    assert halved == pytest.approx(before, abs=0.5)
    assert max(before) - min(before) > 1
    assert rewards(scorer, conversations) == pytest.approx(before, abs=0.5)


def test_conversation_without_memory_fails_alone(scorer: RewardScorer) -> None:
    """With 1,950 tokens, attention of a block takes 2 MiB in bfloat16."""
    short, long = talk("2+2?", "4"), talk("2+2?", "4 " * 1950)
    before = rewards(scorer, [short, long])
    with little_memory():
        first, failed, last = scorer.score([short, long, talk("2+2?", "5")])
    assert isinstance(first, Reward)
    assert isinstance(last, Reward)
    assert first.reward == pytest.approx(before[0], abs=0.5)
    assert isinstance(failed, ScoreError)
    assert failed.code == "device_memory"
    assert "lower `max_length`" in failed.message
    assert rewards(scorer, [short, long]) == pytest.approx(before, abs=0.5)
