"""On CPUs in float32, a reward is the same to the last bit in every batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from examples import limit_examples
from hypothesis import given
from hypothesis import strategies as st

from rm_core import BatchConfig, ModelConfig, RewardScorer
from rm_core.model import batch_invariance
from rm_core.model.prepacked_linear import PrepackedLinear
from rm_core.packing import TokenIds

FAMILIES = ["llama-v0.2", "qwen3"]


@pytest.fixture(scope="module")
def load(checkpoint_of: Callable[[str], Path]) -> Callable[..., RewardScorer]:
    """Load a checkpoint once; each scorer has caches that are empty."""
    scorers: dict[str, RewardScorer] = {}

    def load_scorer(name: str, **batching: int) -> RewardScorer:
        if name not in scorers:
            scorers[name] = RewardScorer.load(ModelConfig(str(checkpoint_of(name)), device="cpu"))
        return RewardScorer(scorers[name].loaded_model, BatchConfig(**batching))

    return load_scorer


def build_sequences(seed: int, count: int) -> list[TokenIds]:
    """Return prompts with several answers, some very short, some of which continue others."""
    draw = random.Random(seed)
    prompts = [tuple(draw.choices(range(3, 60), k=draw.choice((1, 30, 200)))) for _ in range(3)]
    sequences: list[TokenIds] = [(7,)]
    while len(sequences) < count:
        start = draw.choice([*prompts, draw.choice(sequences)])
        rest = tuple(draw.choices(range(3, 60), k=draw.choice((1, 2, 25, 90))))
        sequences.append((*start, *rest)[:400])
    return sequences


@pytest.mark.parametrize("name", FAMILIES)
@hypothesis.settings(max_examples=limit_examples(8))
@given(seed=st.integers(0, 10**6), budget=st.sampled_from([401, 700, 5_000]))
def test_reward_is_the_same_to_the_bit_in_any_batch_and_from_the_cache(
    name: str, seed: int, budget: int, load: Callable[..., RewardScorer]
) -> None:
    sequences = build_sequences(seed, 24)
    without = load(name, prefix_cache_bytes=0, max_batch_tokens=budget)
    alone = [without.score_ids([sequence]).outputs[0] for sequence in sequences]
    assert list(without.score_ids(sequences).outputs) == alone
    order = random.Random(seed).sample(range(len(sequences)), len(sequences))
    shuffled = [sequences[index] for index in order]
    caching = load(name, prefix_cache_bytes=10**7, max_batch_tokens=budget)
    for _ in range(3):  # the second time, prompts are cached
        result = caching.score_ids(shuffled)
        assert list(result.outputs) == [alone[index] for index in order]
    assert result.num_computed_tokens < without.score_ids(shuffled).num_computed_tokens


def test_number_of_threads_changes_no_bit(load: Callable[..., RewardScorer]) -> None:
    sequences = build_sequences(0, 16)
    scorer = load("qwen3", prefix_cache_bytes=0)
    threads, outputs = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outputs.append(scorer.score_ids(sequences).outputs)
    finally:
        torch.set_num_threads(threads)
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("llama-v0.2", {}, True),
        ("qwen3", {}, True),
        ("gemma2", {}, False),
        ("qwen3", {"attention": "eager"}, False),
        ("qwen3", {"dtype": "bfloat16"}, False),
    ],
)
def test_loaded_model_says_whether_it_is_batch_invariant(
    name: str, settings: dict[str, Any], expected: bool, checkpoint_of: Callable[[str], Path]
) -> None:
    scorer = RewardScorer.load(ModelConfig(str(checkpoint_of(name)), device="cpu", **settings))
    assert scorer.loaded_model.batch_invariant == expected


def test_product_that_depends_on_the_number_of_rows_is_detected(
    load: Callable[..., RewardScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load("qwen3").loaded_model
    decoder = loaded.model
    check = batch_invariance.is_batch_invariant
    assert check(decoder, "qwen3", loaded.backend)
    assert not check(decoder, "phi3", loaded.backend)
    forward = PrepackedLinear.forward

    def forward_by_rows(self: PrepackedLinear, rows: torch.Tensor) -> torch.Tensor:
        out = forward(self, rows)
        return out * (1 + 2**-23) if len(rows) == batch_invariance._PARTS[3] else out

    monkeypatch.setattr(PrepackedLinear, "forward", forward_by_rows)
    assert not check(decoder, "qwen3", loaded.backend)
