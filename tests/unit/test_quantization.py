"""Lower precision is a choice: it shows, it is judged by its ranking, and it is refused in time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import refusal
from reference import CONVERSATIONS

from rm_core import ModelConfig, Reward, RewardScorer
from rm_core.verification import agreement, verify

PathOf = Callable[[str], Path]
ScorerOf = Callable[..., RewardScorer]

# torchao says on import what torch will deprecate.
pytestmark = pytest.mark.filterwarnings("ignore")


def rewards(scorer: RewardScorer) -> list[float]:
    results = scorer.score(CONVERSATIONS)
    assert all(isinstance(result, Reward) for result in results), results
    return [result.reward for result in results if isinstance(result, Reward)]


@pytest.mark.parametrize("quantization", ["int8", "int8-weights", "fp8-weights"])
@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3", "gemma2"])
def test_rewards_are_near_and_the_fingerprint_tells(
    name: str, quantization: str, scorer_of: ScorerOf, checkpoint_of: PathOf
) -> None:
    config = ModelConfig(
        str(checkpoint_of(name)),
        device="cpu",
        quantization=quantization,  # type: ignore[arg-type]
    )
    scorer = RewardScorer.load(config)
    assert scorer.fingerprint.dtype == f"float32+{quantization}"
    exact, ours = rewards(scorer_of(name)), rewards(scorer)
    mean = sum(abs(a - b) for a, b in zip(exact, ours, strict=True)) / len(ours)
    assert 1e-4 < mean < 1
    weight = scorer.loaded.model.get_submodule("model.layers.0.mlp.up_proj").weight
    assert type(weight) is not torch.nn.Parameter or weight.dtype != torch.float32


def test_verify_judges_the_ranking(checkpoint_of: PathOf) -> None:
    config = ModelConfig(str(checkpoint_of("qwen3")), device="cpu", quantization="int8-weights")
    checks = {check.name: check for check in verify(RewardScorer.load(config))}
    pairs = checks.pop("agreement/pairs")
    assert pairs.ours is not None
    assert 0.5 < pairs.ours <= 1
    assert "pairs, against float32" in pairs.note
    difference = checks.pop("agreement/mean absolute difference")
    assert difference.ours is not None
    assert 1e-4 < difference.ours < 1
    assert len(checks) > 50
    assert all(check.passed for check in checks.values())


def test_agreement_by_hand() -> None:
    exact = {"a/chosen": 2.0, "a/rejected": 1.0, "b/chosen": -1.0, "b/rejected": 3.0}
    pairs, difference = agreement(exact | {"b/chosen": 4.0}, exact)
    assert (pairs.ours, pairs.passed, pairs.note) == (0.5, False, "1 of 2 pairs, against float32")
    assert (difference.ours, difference.passed) == (1.25, False)
    pairs, difference = agreement(exact | {"a/chosen": 2.1}, exact)
    assert (pairs.ours, pairs.passed) == (1.0, True)
    assert difference.ours == pytest.approx(0.025)
    assert difference.passed
    assert agreement({"a/chosen": 1.0}, exact) == []


def test_what_cannot_work_is_refused(
    checkpoint_of: PathOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint_of("qwen3")
    assert "compute capability 8.9" in refusal(folder, quantization="fp8")
    assert "batch-invariant" in refusal(folder, quantization="int8", deterministic=True)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "torchao" else found(name)
    )
    assert "skyreward[quantization]" in refusal(folder, quantization="int8")
