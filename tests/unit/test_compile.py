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
pytestmark = pytest.mark.filterwarnings("ignore")  # of the compiler's own


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def batches(scorer: RewardScorer) -> list[list[TokenIds]]:
    """Of 20 lengths, some of them the width of the model, of a head, and its number of heads."""
    every = [scorer.encoder.encode(messages).input_ids for messages in CONVERSATIONS]
    longest = max(every, key=len)
    return [
        *([ids] for ids in sorted(every, key=len)[::2]),
        every[:3],
        every,
        *([longest[:length]] for length in (1, 2, 4, 15, 16, 32, 63, 64, 65, 128, 200)),
    ]


def compare_all(compiled: RewardScorer, plain: RewardScorer) -> int:
    """Score every batch both ways; return how many graphs were compiled after the first one."""
    after_first = 0
    for index, batch in enumerate(batches(plain)):
        ours, expected = compiled.score_ids(batch).rewards, plain.score_ids(batch).rewards
        assert list(ours) == pytest.approx(list(expected), abs=1e-4, rel=0)
        if index == 0:
            after_first = num_graphs()
            assert after_first > 0
    return num_graphs() - after_first


def num_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3", "gemma2"])
def test_layers_are_traced_once_for_all_lengths(
    name: str, checkpoint_of: PathOf, scorer_of: ScorerOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a single token are the exception: torch always compiles them apart."""
    compile_ = torch.compile

    @functools.wraps(compile_)
    def trace(function: Any, **options: Any) -> Any:
        return compile_(function, **{**options, "backend": "eager"})

    monkeypatch.setattr(torch, "compile", trace)
    config = ModelConfig(str(checkpoint_of(name)), device="cpu", compile=True)
    scorer = RewardScorer.load(config)
    assert scorer.describe()["compiled"] is True
    more = compare_all(scorer, scorer_of(name))
    assert more <= num_graphs() // 2
    assert num_graphs() <= 8


@pytest.mark.timeout(1800)  # the compiler took over 600 s beside much other work
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for CPUs needs g++")
def test_compiled_layers_score_alike(checkpoint_of: PathOf, scorer_of: ScorerOf) -> None:
    """By the real compiler, on the family with two kinds of layers."""
    config = ModelConfig(str(checkpoint_of("gemma2")), device="cpu", compile=True)
    compare_all(RewardScorer.load(config), scorer_of("gemma2"))
    assert num_graphs() <= 8
