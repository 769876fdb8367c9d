"""Compiled layers give the same rewards, and are not made anew for every batch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from reference import CONVERSATIONS

from rm_core import BatchConfig, ModelConfig, Reward, RewardScorer
from rm_core.packing import pack

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for CPUs needs g++"),
    pytest.mark.filterwarnings("ignore"),  # of the compiler's own
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["gemma2"])
def test_compiled(
    name: str,
    scorer_of: Callable[..., RewardScorer],
    checkpoint_of: Callable[[str], Path],
) -> None:
    config = ModelConfig(str(checkpoint_of(name)), device="cpu", compile=True)
    # Budget and bucket: rows of 64, 128, ... tokens.
    scorer = RewardScorer.load(config, BatchConfig(max_batch_tokens=512))
    assert scorer.describe()["compiled"] is True
    results = scorer.score(CONVERSATIONS)
    expected = scorer_of(name).score(CONVERSATIONS)
    for ours, plain in zip(results, expected, strict=True):
        assert isinstance(ours, Reward)
        assert isinstance(plain, Reward)
        assert ours.reward == pytest.approx(plain.reward, abs=1e-4, rel=0)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled > 0
    # Other conversations, rows of the same lengths: nothing is compiled again.
    lengths = {-(-tree.num_tokens // 64) for tree in pack(ids_of(scorer), 512).batches}
    for start in range(1, 6):
        sequences = [ids[start:] for ids in ids_of(scorer)]
        if {-(-tree.num_tokens // 64) for tree in pack(sequences, 512).batches} <= lengths:
            scorer.score_ids(sequences)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


def ids_of(scorer: RewardScorer) -> list[tuple[int, ...]]:
    return [scorer.encoder.encode(messages).input_ids for messages in CONVERSATIONS]
