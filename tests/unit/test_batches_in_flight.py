"""On CUDA the next batch is launched before the rewards of the last one are read.

On the CPU here: launched batches are the real ones, with an event that records the wait for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rm_core import BatchConfig, DeviceFailedError, RewardScorer, ScoreError
from rm_core.model.forward import LaunchedBatch, launch_batch
from rm_core.packing import PrefixTree, TokenIds

ScorerOf = Callable[..., RewardScorer]
SEQUENCES: list[TokenIds] = [(5, number, *range(20, 50)) for number in range(10, 20)]


@dataclasses.dataclass
class Event:
    """Stands for a CUDA event."""

    wait: Callable[[], None]

    def synchronize(self) -> None:
        self.wait()


class Device:
    """A forward pass that records launches and waits, and fails where a test says so.

    Attributes:
        log: `launch N` and `read N`, with the number of sequences of the batch.
        fails_to_launch: whether a launch raises, by the batch.
        error: what the next wait raises.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.fails_to_launch: Callable[[PrefixTree], bool] = lambda _: False
        self.error: Exception | None = None

    def __call__(self, loaded: Any, tree: PrefixTree, *rest: Any) -> LaunchedBatch:
        number = len(tree.sequences)
        self.log.append(f"launch {number}")
        if self.fails_to_launch(tree):
            raise torch.OutOfMemoryError("CUDA out of memory")

        def wait() -> None:
            self.log.append(f"read {number}")
            if self.error is not None:
                raise self.error

        event: Any = Event(wait)
        return dataclasses.replace(launch_batch(loaded, tree, *rest), event=event)


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def scorer(scorer_of: ScorerOf, device: Device, monkeypatch: pytest.MonkeyPatch) -> RewardScorer:
    """A scorer with batches of two sequences, two of them in flight."""
    monkeypatch.setattr("rm_core.scorer._BATCHES_IN_FLIGHT", {"cpu": 2})
    return RewardScorer(scorer_of("qwen3").loaded_model, BatchConfig(65), device)


def expected(scorer_of: ScorerOf) -> Any:
    return pytest.approx(scorer_of("qwen3").score_ids(SEQUENCES).outputs, abs=1e-4, rel=0)


def test_next_batch_is_launched_before_rewards_are_read(
    scorer: RewardScorer, device: Device, scorer_of: ScorerOf
) -> None:
    assert scorer.score_ids(SEQUENCES).outputs == expected(scorer_of)
    assert device.log[:4] == ["launch 2", "launch 2", "read 2", "launch 2"]
    assert device.log[-2:] == ["read 2", "read 2"]
    assert device.log.count("launch 2") == device.log.count("read 2") == 5


def test_batch_that_fails_to_launch_is_halved_alone(
    scorer: RewardScorer, device: Device, scorer_of: ScorerOf
) -> None:
    """The batch before it is read first, and the next one is launched after its halves."""
    poisoned = SEQUENCES[5]
    device.fails_to_launch = lambda tree: poisoned in tree.sequences
    rewards = list(scorer.score_ids(SEQUENCES).outputs)
    failed = rewards.pop(5)
    assert isinstance(failed, ScoreError)
    assert failed.code == "device_memory"
    others = list(scorer_of("qwen3").score_ids(SEQUENCES).outputs)
    del others[5]
    assert rewards == pytest.approx(others, abs=1e-4, rel=0)
    start = device.log.index("launch 1")
    assert device.log[start - 1] == "read 2"
    assert sorted(device.log[start : start + 3]) == ["launch 1", "launch 1", "read 1"]
    assert device.log[start + 3] == "launch 2"


def test_prompts_of_a_launched_batch_are_in_the_cache_of_the_next(
    scorer: RewardScorer, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(scorer.encoder), "count_prompt_tokens", lambda _, ids: len(ids) - 1)
    prompt = tuple(range(20, 70))
    scored = scorer.score_ids([(*prompt, number, *range(100, 140)) for number in range(3, 9)])
    assert device.log[:3] == ["launch 1", "launch 1", "read 1"]
    assert scored.num_prefix_tokens == 5 * len(prompt)


def test_device_that_fails_while_batches_run_is_given_up(
    scorer: RewardScorer, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the prefix cache is used again, since launched batches were counted as done."""
    monkeypatch.setattr(type(scorer.encoder), "count_prompt_tokens", lambda _, ids: len(ids) - 1)
    device.error = torch.AcceleratorError("CUDA error: an illegal memory access")
    with pytest.raises(DeviceFailedError, match="illegal memory access"):
        scorer.score_ids(SEQUENCES)
    assert device.log == ["launch 2", "launch 2", "read 2"]
    device.error = None
    assert scorer.score_ids(SEQUENCES[:1]).num_prefix_tokens == 0


def test_cpu_computes_one_batch_at_a_time(scorer_of: ScorerOf, device: Device) -> None:
    scorer = RewardScorer(scorer_of("qwen3").loaded_model, BatchConfig(65), device)
    scorer.score_ids(SEQUENCES)
    assert device.log == ["launch 2", "read 2"] * 5
