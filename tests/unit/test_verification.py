"""`verify` passes for a correct scorer, and fails for every kind of wrong scorer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forward_stub import ForwardStub
from kinds import build_judge, build_step_model

from rm_core import ModelConfig, RewardScorer, ScoreError
from rm_core.inputs.conversations import Messages
from rm_core.model.forward import forward_batch
from rm_core.packing import PrefixTree
from rm_core.tolerance import bfloat16_step
from rm_core.verification import Check, sample_conversations, verify

PathOf = Callable[[str], Path]
ScorerOf = Callable[..., RewardScorer]


def too_long(scorer: RewardScorer, messages: Messages) -> bool:
    return isinstance(scorer.encoder.encode_all([messages])[0], ScoreError)


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few of the built-in conversations, for tests that do not need all of them."""
    use_few_samples(monkeypatch)


def use_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    few = sample_conversations()[:8]
    monkeypatch.setattr("rm_core.verification.sample_conversations", lambda: few)


def parity(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.note == "plain transformers, eager"]


def test_verify_passes_for_a_correct_scorer(scorer_of: ScorerOf) -> None:
    stages: list[str] = []
    checks = verify(scorer_of("qwen3"), stages.append)
    assert [check for check in checks if not check.passed] == []
    fitting = [name for name, m in sample_conversations() if not too_long(scorer_of("qwen3"), m)]
    assert [check.name for check in checks] == fitting
    assert len(fitting) >= 40
    assert len(stages) == 3


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize("name", ["llama-v0.1", "llama-template-bos-only", "gemma2"])
def test_verify_passes_for_every_family(name: str, scorer_of: ScorerOf) -> None:
    checks = verify(scorer_of(name))
    assert checks
    assert [check for check in checks if not check.passed] == []


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("llama-v0.2", "sdpa"),
        ("qwen3", "eager"),
        pytest.param("llama-v0.2", "eager", marks=pytest.mark.slow),
        pytest.param("qwen3", "sdpa", marks=pytest.mark.slow),
    ],
)
def test_verify_allows_bfloat16_rounding_of_plain_transformers(
    name: str, attention: str, scorer_of: ScorerOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, stages = scorer_of(name, "bfloat16", attention), list[str]()
    checks = verify(scorer, stages.append)
    assert all(check.passed for check in checks)
    assert stages[-1] == "plain transformers in float32"
    assert all(check.tolerance >= bfloat16_step(check.expected) for check in parity(checks))
    assert max(check.tolerance for check in checks) < 1
    if attention == "sdpa":
        assert any(abs(c.difference or 0) > bfloat16_step(c.expected) for c in checks)

    def shifted(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        return [logit + 1 for logit in forward_batch(loaded, tree, *rest)]

    use_few_samples(monkeypatch)
    scorer = RewardScorer(scorer.loaded_model, forward=shifted)
    assert not any(check.passed for check in parity(verify(scorer)))


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize("shift", [0.01, -0.01, 2e-4])
def test_verify_fails_for_shifted_rewards(shift: float, scorer_of: ScorerOf) -> None:
    def shifted(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        return [logit + shift for logit in forward_batch(loaded, tree, *rest)]

    checks = verify(RewardScorer(scorer_of("qwen3").loaded_model, forward=shifted))
    assert checks
    assert not any(check.passed for check in checks)
    differences = [check.difference for check in checks]
    assert differences == pytest.approx([shift] * len(checks), abs=1e-4)


@pytest.mark.usefixtures("few_samples")
def test_one_wrong_reward_fails_only_its_check(scorer_of: ScorerOf) -> None:
    scorer = scorer_of("qwen3")
    name, messages = sample_conversations()[5]
    wrong_ids = scorer.encoder.encode(messages).input_ids

    def wrong(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        logits = forward_batch(loaded, tree, *rest)
        return [x + (ids == wrong_ids) for ids, x in zip(tree.sequences, logits, strict=True)]

    scorer = RewardScorer(scorer.loaded_model, forward=wrong)
    assert [check.name for check in verify(scorer) if not check.passed] == [name]


@pytest.mark.usefixtures("few_samples")
def test_score_error_fails_the_check(scorer_of: ScorerOf) -> None:
    def failing(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        raise RuntimeError("broken")

    checks = verify(RewardScorer(scorer_of("qwen3").loaded_model, forward=failing))
    assert checks
    for check in checks:
        assert not check.passed
        assert check.ours is check.difference is None
        assert check.note.startswith("scoring_failed: ")


def test_verify_has_no_checks_without_comparable_conversations(checkpoint_of: PathOf) -> None:
    config = ModelConfig(str(checkpoint_of("qwen3")), device="cpu", max_length=5)
    assert verify(RewardScorer.load(config)) == []


@pytest.mark.usefixtures("few_samples")
def test_verify_compares_published_rewards(copy_of: Callable[..., Path]) -> None:
    """Random weights with a published model's name equal plain transformers, but not that model."""
    folder = copy_of("llama-v0.2", "Skywork-Reward-Llama-3.1-8B-v0.2")
    checks = verify(RewardScorer.load(ModelConfig(str(folder), device="cpu")))
    golden = [check for check in checks if check.name.startswith("golden/")]
    assert {check.expected for check in golden} >= {13.6875, -9.1875}
    assert not any(check.passed for check in golden)
    assert len(parity(checks)) == len(checks) - len(golden)
    assert all(check.passed for check in parity(checks))


@pytest.mark.usefixtures("few_samples")
def test_verify_compares_published_token_counts(copy_of: Callable[..., Path]) -> None:
    folder = copy_of("qwen3", "Skywork-Reward-V2-Qwen3-0.6B")
    checks = verify(RewardScorer.load(ModelConfig(str(folder), device="cpu")))
    lengths = [check for check in checks if check.name == "golden/token length"]
    assert [(check.expected, check.passed) for check in lengths] == [(39, False)]
    assert not any(check.passed for check in checks if check.name.startswith("golden/france"))


@pytest.mark.usefixtures("few_samples")
def test_published_rewards_within_tolerance_pass(copy_of: Callable[..., Path]) -> None:
    folder = copy_of("llama-v0.2", "Skywork-Reward-Llama-3.1-8B-v0.2")
    forward = ForwardStub()
    scorer = RewardScorer.load(ModelConfig(str(folder), device="cpu"), forward=forward)
    golden = [c for c in verify(scorer) if c.name.startswith("golden/")]
    for steps, passes in {3.5: True, 4.5: False}.items():
        for check in golden:
            reward = check.expected + steps * check.tolerance / 4
            forward.run = lambda _, tree, *__, x=reward: [x] * len(tree.sequences)
            again = {c.name: c for c in verify(scorer)}[check.name]
            assert again.passed == passes


@pytest.mark.parametrize("kind", ["step", "judge"])
def test_verify_covers_step_models_and_judges(kind: str, tmp_path: Path) -> None:
    folder = build_step_model(tmp_path) if kind == "step" else build_judge(tmp_path)
    config = ModelConfig(str(folder), kind=kind, device="cpu")  # type: ignore[arg-type]
    if kind == "step":
        config = ModelConfig(str(folder), device="cpu")
    scorer = RewardScorer.load(config)
    checks = verify(scorer)
    assert len(checks) >= 10
    assert [check for check in checks if not check.passed] == []

    def shifted(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        return [output + 0.01 for output in forward_batch(loaded, tree, *rest)]

    checks = verify(RewardScorer(scorer.loaded_model, forward=shifted))
    assert not any(check.passed for check in checks)
