"""The scorer around the forward pass: order of results, budgets, and isolated failures."""

from __future__ import annotations

import functools
import gc
import math
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forward_stub import ForwardStub

from rm_core import (
    BatchConfig,
    ConversationTooLongError,
    ModelConfig,
    Reward,
    RewardScorer,
    ScoreError,
)
from rm_core.errors import ScoringError
from rm_core.model.forward import forward_batch
from rm_core.packing import PrefixTree
from rm_core.scorer import merge_results

PathOf = Callable[[str], Path]
ScorerOf = Callable[..., RewardScorer]
# The last bits of a reward depend on the shapes of the batch's matrix products.
near = functools.partial(pytest.approx, abs=1e-4, rel=0)


def talk(answer: str, question: str = "2+2?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


GOOD = [talk(str(i) * (i % 5 + 1)) for i in range(30)]
BAD = [
    None,
    "2+2? 4",
    [],
    ["4"],
    [{"role": "assistant"}],
    [{"role": "robot", "content": "4"}],
    [{"role": "user", "content": "2+2?"}],
    [{"role": "assistant", "content": 4}],
    [{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    talk("\ud83d"),
    talk("word " * 3000),
]


@pytest.fixture
def forward() -> ForwardStub:
    return ForwardStub()


@pytest.fixture
def scorer(scorer_of: ScorerOf, forward: ForwardStub) -> RewardScorer:
    """A scorer with shared weights, and with a small budget for several batches."""
    return RewardScorer(scorer_of("qwen3").loaded_model, BatchConfig(100), forward)


@pytest.fixture
def expected(scorer: RewardScorer) -> list[float]:
    """Rewards of GOOD, each scored alone."""
    return [scorer.score([c])[0].reward for c in GOOD]  # type: ignore[union-attr]


def ids_of(scorer: RewardScorer, index: int) -> tuple[int, ...]:
    return scorer.encoder.encode(GOOD[index]).input_ids


def test_bad_conversations_fail_alone_at_their_index(
    scorer: RewardScorer, expected: list[float]
) -> None:
    mixed: list[object] = list(GOOD)
    indices = [2 * i for i in range(len(BAD))]
    for index, bad in zip(indices, BAD, strict=True):
        mixed.insert(index, bad)
    results = scorer.score(mixed)
    assert len(results) == len(mixed)
    for i, result in enumerate(results):
        assert isinstance(result, ScoreError) == (i in indices), result
    errors = [r for r in results if isinstance(r, ScoreError)]
    assert {e.code for e in errors} == {"invalid_conversation", "conversation_too_long"}
    assert errors[-1].code == "conversation_too_long"
    assert len({e.message for e in errors}) == len(BAD)
    assert [r.reward for r in results if isinstance(r, Reward)] == near(expected)


def test_results_report_tokens_and_truncation(scorer: RewardScorer) -> None:
    long = talk("4", "word " * 3000)
    whole, cut = scorer.score([talk("4"), long], truncation="left")
    assert isinstance(whole, Reward)
    assert isinstance(cut, Reward)
    assert (whole.truncated, whole.num_tokens) == (
        False,
        len(scorer.encoder.encode(talk("4")).input_ids),
    )
    assert cut.truncated
    assert 2040 < cut.num_tokens <= 2048
    (right,) = scorer.score([long], truncation="right")
    assert isinstance(right, Reward)
    assert right.num_tokens == 2048
    assert right.reward != cut.reward


def test_score_without_valid_conversations(scorer: RewardScorer) -> None:
    assert scorer.score([]) == []
    assert scorer.score([None])[0].code == "invalid_conversation"  # type: ignore[union-attr]


def test_batches_keep_the_budget_and_have_no_duplicates(
    scorer: RewardScorer, expected: list[float], forward: ForwardStub
) -> None:
    seen: list[PrefixTree] = []

    def watched(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        seen.append(tree)
        return forward_batch(loaded, tree, *rest)

    forward.run = watched
    sequences = [scorer.encoder.encode(c).input_ids for c in [*GOOD, *GOOD, talk("long " * 200)]]
    scored = scorer.score_ids(sequences)
    assert list(scored.outputs[:-1]) == near(expected * 2)
    assert all(t.num_tokens <= 100 or len(t.sequences) == 1 for t in seen)
    assert sum(tree.num_tokens > 100 for tree in seen) == 1
    assert max(len(tree.sequences) for tree in seen) > 1
    computed = sum(tree.num_tokens for tree in seen)
    assert scored.num_computed_tokens == computed < sum(map(len, set(sequences)))


def test_forward_error_fails_only_one_conversation(
    scorer: RewardScorer,
    expected: list[float],
    forward: ForwardStub,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing_ids = ids_of(scorer, 7)

    def failing(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        if failing_ids in tree.sequences:
            raise RuntimeError("secret of the inside")
        return forward_batch(loaded, tree, *rest)

    forward.run = failing
    results = scorer.score(GOOD)
    failure = results.pop(7)
    assert isinstance(failure, ScoreError)
    assert failure.code == "scoring_failed"
    assert f"of {len(failing_ids)} tokens (RuntimeError)" in failure.message
    assert "secret" not in failure.message
    assert "see the service's log for details" in failure.message
    assert "secret of the inside" in caplog.text
    assert [r.reward for r in results if isinstance(r, Reward)] == near(expected[:7] + expected[8:])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_reward_is_an_error(
    value: float, scorer: RewardScorer, expected: list[float], forward: ForwardStub
) -> None:
    failing_ids = ids_of(scorer, 3)

    def wrong(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        logits = forward_batch(loaded, tree, *rest)
        return [
            value if ids == failing_ids else x
            for ids, x in zip(tree.sequences, logits, strict=True)
        ]

    forward.run = wrong
    results = scorer.score(GOOD)
    failure = results.pop(3)
    assert isinstance(failure, ScoreError)
    assert failure.code == "non_finite_reward"
    assert f"returned {value}" in failure.message
    assert "setting `dtype`" in failure.message
    assert [r.reward for r in results if isinstance(r, Reward)] == near(expected[:3] + expected[4:])


def test_nan_in_weights_on_the_device_is_an_error(copy_of: Callable[..., Path]) -> None:
    scorer = RewardScorer.load(ModelConfig(str(copy_of()), device="cpu"))
    with torch.no_grad():
        next(scorer.loaded_model.model.parameters()).fill_(math.nan)
    (result,) = scorer.score([talk("4")])
    assert isinstance(result, ScoreError)
    assert result.code == "non_finite_reward"
    with pytest.raises(ScoringError, match="warm-up conversation could not be scored"):
        scorer.warm_up()


def test_out_of_memory_error_names_the_setting_to_lower(
    scorer: RewardScorer, expected: list[float], forward: ForwardStub
) -> None:
    failing_ids = ids_of(scorer, 5)

    def full(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        if len(tree.sequences) > 1 or failing_ids in tree.sequences:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward_batch(loaded, tree, *rest)

    forward.run = full
    results = scorer.score(GOOD)
    failure = results.pop(5)
    assert isinstance(failure, ScoreError)
    assert failure.code == "device_memory"
    assert f"of {len(failing_ids)} tokens; lower `max_length`" in failure.message
    assert [r.reward for r in results if isinstance(r, Reward)] == near(expected[:5] + expected[6:])


def test_failed_batch_is_released_before_the_retry(
    scorer: RewardScorer, forward: ForwardStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback keeps the tensors of its frames, so that the retry would run out of memory."""
    held: list[weakref.ref[torch.Tensor]] = []

    def full(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        assert not [ref for ref in held if ref() is not None]
        activations = torch.zeros(1)
        held.append(weakref.ref(activations))
        if len(tree.sequences) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [1.0]

    forward.run = full
    monkeypatch.setattr("rm_core.scorer.logger.disabled", True)  # pytest keeps what is logged
    gc.disable()
    try:
        results = scorer.score(GOOD[:4])
    finally:
        gc.enable()
    assert [getattr(result, "reward", result) for result in results] == [1.0] * 4


def test_missing_reward_raises_assertion_error(scorer: RewardScorer, forward: ForwardStub) -> None:
    forward.run = lambda loaded, tree, *_: [1.0] * (len(tree.sequences) - 1)
    with pytest.raises(AssertionError):
        scorer.score(GOOD)


def test_merge_results_needs_one_reward_per_encoded_conversation(scorer: RewardScorer) -> None:
    encoded = scorer.encoder.encode_all([GOOD[0], None, GOOD[1]])
    failure = ScoreError("scoring_failed", "why")
    first, second, third = merge_results(encoded, (1.5, failure))
    assert isinstance(first, Reward)
    assert first.reward == 1.5
    assert isinstance(second, ScoreError)
    assert second.code == "invalid_conversation"
    assert third is failure
    with pytest.raises(AssertionError):
        merge_results(encoded, (1.0, 2.0, 3.0))


def test_describe_reports_settings_and_reasons(scorer: RewardScorer) -> None:
    described = scorer.describe()
    fingerprint = scorer.fingerprint
    assert described.as_dict() == {
        "kind": "classifier",
        "kind_reason": "architecture Qwen3ForSequenceClassification",
        "step_format": None,
        "catalogue_id": None,
        "family": "qwen3",
        "revision": fingerprint.revision,
        "template_sha256": fingerprint.template_sha256,
        "encoding_sha256": scorer.encoder.encoding_sha256,
        "template_depends_on_date": False,
        "dtype": "float32",
        "head": "score",
        "head_dtype": "float32",
        "readout_layer": "readout tokens only",
        "device": "cpu",
        "attention": "sdpa",
        "attention_reason": "the model runs on the CPU; its kernel needs no mask",
        "max_length": 2048,
        "max_batch_tokens": 100,
        "max_batch_tokens_reason": "requested by the setting `max_batch_tokens`",
        "prefix_cache_tokens": 6400,
        "prefix_cache_bytes": 6_553_600,
        "prefix_cache_reason": "prompts of 64 full batches",
        "vision_cache_bytes": 0,
        "vision_cache_reason": "the model reads only text",
        "deterministic": False,
        "compiled": False,
        "compiled_reason": "compiled layers were slower on CPUs",
        "self_check": True,
        "tokenizer": scorer.encoder.text_tokenizer.choice.name,
        "tokenizer_reason": scorer.encoder.text_tokenizer.choice.reason,
    }
    assert fingerprint.template_sha256 == scorer.encoder.template_sha256
    assert (fingerprint.dtype, fingerprint.attention) == ("float32", "sdpa")
    assert described.fingerprint == fingerprint
    assert pickle.loads(pickle.dumps(described)) == described


def test_describe_names_the_catalog_entry(copy_of: Callable[..., Path]) -> None:
    folder = copy_of("llama-v0.2", "Skywork-Reward-Llama-3.1-8B-v0.2")
    described = RewardScorer.load(ModelConfig(str(folder), device="cpu")).describe()
    assert described.catalogue_id == "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2"


@pytest.mark.parametrize("name", ["llama-v0.1", "qwen3", "gemma2"])
def test_warm_up_scores_one_conversation(name: str, scorer_of: ScorerOf) -> None:
    seen: list[int] = []

    def watched(loaded: Any, tree: PrefixTree, *rest: Any) -> list[float]:
        seen.append(len(tree.sequences))
        return forward_batch(loaded, tree, *rest)

    RewardScorer(scorer_of(name).loaded_model, forward=watched).warm_up()
    assert seen == [1]


def test_warm_up_over_max_length_raises(checkpoint_of: PathOf) -> None:
    config = ModelConfig(str(checkpoint_of("qwen3")), device="cpu", max_length=3)
    with pytest.raises(ConversationTooLongError, match="the limit is 3"):
        RewardScorer.load(config).warm_up()
