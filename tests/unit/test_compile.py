"""Compiled layers give the same rewards, and are compiled once for rows of any length."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import CONVERSATIONS

from rm_core import ModelConfig, RewardScorer
from rm_core.packing import TokenIds

PathOf = Callable[[str], Path]
ScorerOf = Callable[..., RewardScorer]
pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own warnings


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def build_batches(scorer: RewardScorer) -> list[list[TokenIds]]:
    """Return batches of 20 lengths, among them the model's and a head's width and the heads."""
    sequences = [scorer.encoder.encode(messages).input_ids for messages in CONVERSATIONS]
    longest = max(sequences, key=len)
    return [
        *([ids] for ids in sorted(sequences, key=len)[::2]),
        sequences[:3],
        sequences,
        *([longest[:length]] for length in (1, 2, 4, 15, 16, 32, 63, 64, 65, 128, 200)),
    ]


def compare_all(compiled: RewardScorer, plain: RewardScorer) -> int:
    """Score every batch both ways; return how many graphs were compiled after the first one."""
    after_first = 0
    for index, batch in enumerate(build_batches(plain)):
        ours, expected = compiled.score_ids(batch).rewards, plain.score_ids(batch).rewards
        assert list(ours) == pytest.approx(list(expected), abs=1e-4, rel=0)
        if index == 0:
            after_first = count_graphs()
            assert after_first > 0
    return count_graphs() - after_first


def count_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("llama-v0.2", marks=pytest.mark.slow),
        pytest.param("qwen3", marks=pytest.mark.slow),
        "gemma2",
    ],
)
def test_layers_are_traced_once_for_all_lengths(
    name: str, checkpoint_of: PathOf, scorer_of: ScorerOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except for rows of a single token, which torch always compiles separately."""
    compile_ = torch.compile

    @functools.wraps(compile_)
    def trace(function: Any, **options: Any) -> Any:
        return compile_(function, **{**options, "backend": "eager"})

    monkeypatch.setattr(torch, "compile", trace)
    config = ModelConfig(str(checkpoint_of(name)), device="cpu", compile=True)
    scorer = RewardScorer.load(config)
    assert scorer.describe().compiled is True
    more = compare_all(scorer, scorer_of(name))
    assert more <= count_graphs() // 2
    assert count_graphs() <= 8


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the compiler took over 600 s on a busy machine
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for CPUs needs g++")
def test_compiled_layers_give_rewards_of_plain_layers(
    checkpoint_of: PathOf, scorer_of: ScorerOf
) -> None:
    """With the real compiler, on the family with two kinds of layers."""
    config = ModelConfig(str(checkpoint_of("gemma2")), device="cpu", compile=True)
    compare_all(RewardScorer.load(config), scorer_of("gemma2"))
    assert count_graphs() <= 8
