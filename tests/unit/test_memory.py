"""Token budget of batches, from memory and shape, verified by the warm-up."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rm_core import BatchConfig, DeviceMemoryError, RewardScorer
from rm_core.memory import build_full_batch, choose_budget, estimate_bytes_per_token, fit_budget
from rm_core.packing import PrefixTree
from serve.capacity.shape import find_model_shape

ScorerOf = Callable[..., RewardScorer]
LLAMA_8B = SimpleNamespace(
    hidden_size=4_096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
CUDA = torch.device("cuda")


def set_free_memory(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (num_bytes, 80 << 30))


def test_estimate_bytes_per_token() -> None:
    """Computed by hand: 2 x 4,096 in bfloat16 and in float32, and three times the MLP."""
    assert (
        estimate_bytes_per_token(LLAMA_8B, torch.bfloat16) == 2 * 4_096 * (2 + 4) + 3 * 14_336 * 2
    )
    assert estimate_bytes_per_token(LLAMA_8B, torch.float32) == 2 * 4_096 * (4 + 4) + 3 * 14_336 * 4


def test_budget_follows_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def budget(num_bytes: int, requested: int | None = None) -> int:
        set_free_memory(monkeypatch, num_bytes)
        chosen = choose_budget(requested, LLAMA_8B, torch.bfloat16, CUDA)
        assert chosen.is_automatic == (requested is None)
        return chosen.max_batch_tokens

    assert budget(60 << 30) == 16_384
    assert budget(1 << 30) == int(0.8 * 2**30) // 135_168 // 256 * 256 == 6_144
    assert budget(1 << 20) == 256
    assert budget(1 << 20, requested=9_999) == 9_999


@pytest.mark.parametrize(
    ("name", "num_tokens"),
    [
        ("Skywork-Reward-V2-Qwen3-0.6B", 65_536),
        ("Skywork-Reward-V2-Qwen3-8B", 16_384),
        ("Skywork-Reward-V2-Llama-3.1-8B", 16_384),
        ("Skywork-Reward-Gemma-2-27B-v0.2", 4_096),
    ],
)
def test_budget_bounds_the_time_of_a_batch(name: str, num_tokens: int) -> None:
    """About 0.4 s on a fast GPU, and no more than keeps the GPU busy."""
    budget = fit_budget(100 << 30, find_model_shape(name), torch.bfloat16)
    assert budget.max_batch_tokens == num_tokens
    waits = "would make lone requests wait" in budget.reason
    assert waits == (num_tokens < 65_536)
    fixed = fit_budget(100 << 30, find_model_shape(name), torch.bfloat16, deterministic=True)
    assert fixed.max_batch_tokens == min(8_192, num_tokens)


def test_build_full_batch_fills_the_budget() -> None:
    tree = build_full_batch(1_000, 300)
    assert tree.num_tokens == 1_000
    assert [len(sequence) for sequence in tree.sequences] == [100, 300, 300, 300]


@pytest.mark.parametrize("automatic", [True, False])
def test_warm_up_verifies_the_largest_batch(automatic: bool, scorer_of: ScorerOf) -> None:
    """An automatic budget is halved until it fits; a requested budget is refused."""
    batching = None if automatic else BatchConfig(4_096)
    loaded_model = scorer_of("qwen3").loaded_model
    tried: list[int] = []

    def full(loaded: Any, tree: PrefixTree, *_: int) -> list[float]:
        tried.append(tree.num_tokens)
        assert max(map(len, tree.sequences)) <= loaded.encoder.max_length
        if tree.num_tokens > 1_500:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [0.0] * len(tree.sequences)

    scorer = RewardScorer(loaded_model, batching, full)
    if not automatic:
        with pytest.raises(DeviceMemoryError, match="max_batch_tokens = 4096 does not fit"):
            scorer.warm_up(largest_batch=True)
        return
    scorer.warm_up(largest_batch=True)
    assert tried[1:] == [4_096, 2_048, 1_024]
    assert scorer.describe().max_batch_tokens == 1_024
    assert "2048 tokens did not fit" in scorer.describe().max_batch_tokens_reason


def test_failed_batch_is_retried_in_halves(
    scorer_of: ScorerOf,
) -> None:
    sizes: list[int] = []

    def full(loaded: Any, tree: PrefixTree, *_: int) -> list[float]:
        sizes.append(len(tree.sequences))
        if len(tree.sequences) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [float(sequence[-1]) for sequence in tree.sequences]

    scorer = RewardScorer(scorer_of("qwen3").loaded_model, forward=full)
    sequences = [(1, token) for token in range(20, 28)]
    assert scorer.score_ids(sequences).outputs == tuple(float(token) for token in range(20, 28))
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
