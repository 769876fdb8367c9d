"""The two halves of `RewardScorer.score_ids`: `pack`, and `score_packing` batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rm_core import BatchConfig, RewardScorer
from rm_core.model.forward import forward_batch
from rm_core.packing import PrefixTree, TokenIds


@pytest.fixture
def scorer(scorer_of: Callable[..., RewardScorer]) -> RewardScorer:
    """A scorer with a small budget, so that there are several batches."""
    return RewardScorer(scorer_of("qwen3").loaded_model, BatchConfig(100, prefix_cache_bytes=0))


@pytest.fixture
def sequences(scorer: RewardScorer) -> list[TokenIds]:
    conversations = [
        [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": str(i) * (i % 5 + 1)},
        ]
        for i in range(30)
    ]
    return [scorer.encoder.encode(conversation).input_ids for conversation in conversations]


def test_on_batch_start_is_called_before_each_batch(
    scorer: RewardScorer, sequences: list[TokenIds]
) -> None:
    events: list[tuple[str, int]] = []

    def recording_forward(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        events.append(("ran", tree.num_tokens))
        return forward_batch(loaded, tree, *rest)

    scorer = RewardScorer(
        scorer.loaded_model, BatchConfig(100, prefix_cache_bytes=0), recording_forward
    )
    expected = scorer.score_ids(sequences)
    whole, events = events, []
    scored = scorer.score_packing(
        scorer.pack(sequences), lambda num_tokens: events.append(("started", num_tokens))
    )
    assert scored == expected
    assert len(whole) > 1
    assert events == [(what, size) for _, size in whole for what in ("started", "ran")]


def test_exception_of_on_batch_start_ends_scoring(
    scorer: RewardScorer, sequences: list[TokenIds]
) -> None:
    sizes: list[int] = []

    def end_at_the_second(num_tokens: int) -> None:
        sizes.append(num_tokens)
        if len(sizes) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        scorer.score_packing(scorer.pack(sequences), end_at_the_second)
    assert len(sizes) == 2
