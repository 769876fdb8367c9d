"""Rewards equal those of plain transformers for every family and kind of checkpoint."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from checkpoints import SPECS
from examples import limit_examples
from hypothesis import given
from hypothesis import strategies as st
from reference import CONVERSATIONS, LONG, Messages, Reference, talk
from transformers import AutoTokenizer

from rm_core import BatchConfig, ModelConfig, Reward, RewardScorer
from rm_core.tolerance import bfloat16_step

PathOf = Callable[[str], Path]
ScorerOf = Callable[..., RewardScorer]

SYSTEM = [{"role": "system", "content": "Be brief."}, *talk("2+2?", "4")]


def conversations_for(name: str) -> list[Messages]:
    return CONVERSATIONS if SPECS[name].family == "gemma2" else [*CONVERSATIONS, SYSTEM]


@functools.cache
def reference_of(name: str, folder: Path) -> Reference:
    return Reference(folder)


def references(name: str, folder: Path, dtype: str = "float32", **changes: Any) -> list[float]:
    reference = Reference(folder, getattr(torch, dtype), **changes)
    return [reference.reward(messages) for messages in conversations_for(name)]


def rewards(scorer: RewardScorer, conversations: list[Messages]) -> list[float]:
    results = scorer.score(conversations)
    assert all(isinstance(result, Reward) for result in results), results
    return [result.reward for result in results if isinstance(result, Reward)]


@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("name", SPECS)
def test_float32_rewards_equal_plain_transformers(
    name: str, attention: str, scorer_of: ScorerOf, checkpoint_of: PathOf
) -> None:
    ours = rewards(scorer_of(name, "float32", attention), conversations_for(name))
    assert ours == pytest.approx(references(name, checkpoint_of(name)), abs=1e-4, rel=0)
    assert max(ours) - min(ours) > 1  # otherwise wrong rewards could be equal


@pytest.mark.parametrize("name", SPECS)
def test_bfloat16_rewards_are_within_one_step(
    name: str, scorer_of: ScorerOf, checkpoint_of: PathOf
) -> None:
    scorer = scorer_of(name, "bfloat16")
    assert {p.dtype for p in scorer.loaded_model.model.parameters()} == {torch.bfloat16}
    hidden = torch.ones(1, 64, dtype=torch.bfloat16)
    assert scorer.loaded_model.head.apply(hidden).dtype == torch.float32
    assert scorer.describe().head_dtype == "float32"
    ours = rewards(scorer, conversations_for(name))
    expected = references(name, checkpoint_of(name), "bfloat16")
    for our, theirs in zip(ours, expected, strict=True):
        assert abs(our - theirs) <= bfloat16_step(theirs)
    # Rewards rounded to bfloat16 would be multiples of their step.
    assert any(our % bfloat16_step(our) for our in ours)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma2", {"sliding_window": 4096}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("llama-v0.2", {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
    ],
)
def test_features_of_a_family_change_its_rewards(
    name: str, changes: dict[str, Any], scorer_of: ScorerOf, checkpoint_of: PathOf
) -> None:
    """Otherwise parity on these checkpoints would prove nothing about these features."""
    without = references(name, checkpoint_of(name), **changes)
    ours = rewards(scorer_of(name), conversations_for(name))
    differences = [abs(a - b) for a, b in zip(ours, without, strict=True)]
    assert max(differences) > 0.05
    assert sum(difference > 0.01 for difference in differences) >= 3


def test_long_conversations_exceed_the_sliding_window(scorer_of: ScorerOf) -> None:
    scorer = scorer_of("gemma2")
    window = scorer.loaded_model.model.config.sliding_window
    lengths = [scorer.encoder.encode(m).num_tokens for m in CONVERSATIONS]
    assert sum(length > 2 * window for length in lengths) >= 3
    assert min(lengths) < window


# Few tokens: shared prefixes of any depth, sequences that are prefixes of others or differ in one.
TREES = st.lists(
    st.lists(st.integers(20, 22), min_size=1, max_size=90).map(tuple), min_size=1, max_size=64
)


@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3-pad-is-eos", "gemma2"])
@hypothesis.settings(max_examples=limit_examples(15))
@given(sequences=TREES, data=st.data())
def test_rewards_of_any_prefix_tree_equal_plain_transformers(
    name: str,
    attention: str,
    scorer_of: ScorerOf,
    checkpoint_of: PathOf,
    sequences: list[tuple[int, ...]],
    data: st.DataObject,
) -> None:
    """In batches of any size, and for any prefixes and continuations of sequences."""
    scorer = scorer_of(name, "float32", attention)
    pad = scorer.loaded_model.pad_token_id
    for sequence in data.draw(st.lists(st.sampled_from(sequences), max_size=8)):
        stop = data.draw(st.integers(1, len(sequence)))
        sequences = [*sequences, sequence[:stop], (*sequence[:stop], 30), (*sequence, pad)]
    budget = data.draw(st.integers(1, 2 * sum(map(len, sequences))))
    scored = RewardScorer(scorer.loaded_model, BatchConfig(budget)).score_ids(sequences)
    reference = reference_of(name, checkpoint_of(name))
    with torch.inference_mode():
        expected = [float(reference.model(torch.tensor([s])).logits[0, 0]) for s in sequences]
    assert list(scored.outputs) == pytest.approx(expected, abs=1e-4, rel=0)
    assert scored.num_computed_tokens <= sum(map(len, set(sequences)))


@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3", "gemma2"])
def test_batch_and_order_do_not_change_rewards(name: str, scorer_of: ScorerOf) -> None:
    scorer = scorer_of(name)
    alone = [rewards(scorer, [messages])[0] for messages in CONVERSATIONS]
    order = random.Random(0).choices(range(len(CONVERSATIONS)), k=40)  # with duplicates
    assert len(set(order)) < len(order)
    together = rewards(scorer, [CONVERSATIONS[i] for i in order])
    assert together == pytest.approx([alone[i] for i in order], abs=1e-4, rel=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3", "gemma2"])
def test_deterministic_rewards_are_bit_identical(
    name: str, dtype: str, checkpoint_of: PathOf
) -> None:
    """Alone, in any batch, in any order, and with any shared prefixes."""
    scorer = RewardScorer.load(
        ModelConfig(
            str(checkpoint_of(name)),
            dtype=dtype,  # type: ignore[arg-type]
            device="cpu",
            deterministic=True,
        )
    )
    assert scorer.describe().deterministic is True
    assert scorer.fingerprint.attention == "eager"
    follow_ups = [[*talk(LONG, LONG), *talk("So how many?", str(n))] for n in range(5)]
    conversations = [*CONVERSATIONS, *follow_ups]
    alone = [rewards(scorer, [messages])[0] for messages in conversations]
    expected = Reference(checkpoint_of(name), getattr(torch, dtype))
    for messages, reward in zip(conversations, alone, strict=True):
        plain = expected.reward(messages)
        assert abs(reward - plain) <= (1e-4 if dtype == "float32" else bfloat16_step(plain))
    rng = random.Random(0)
    for _ in range(6):
        order = rng.sample(range(len(conversations)), k=rng.randint(2, len(conversations)))
        assert rewards(scorer, [conversations[i] for i in order]) == [alone[i] for i in order]


def test_deterministic_mode_has_one_row_length(checkpoint_of: PathOf) -> None:
    """Kernels for larger models depend on the number of rows; those of this small model do not."""
    config = ModelConfig(str(checkpoint_of("qwen3")), device="cpu", deterministic=True)
    scorer = RewardScorer.load(config, BatchConfig(max_batch_tokens=100))
    lengths: list[int] = []
    embedding = scorer.loaded_model.model.get_submodule("embed_tokens")
    embedding.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[-1]))
    sizes = [scorer.encoder.encode(messages).num_tokens for messages in CONVERSATIONS]
    rewards(scorer, CONVERSATIONS)
    assert len(lengths) > 3
    alone = {-(-size // 100) * 100 for size in sizes if size > 100}
    assert set(lengths) == {100} | alone


def test_sharded_checkpoint_gives_the_same_rewards(
    scorer_of: ScorerOf, checkpoint_of: PathOf, tmp_path: Path
) -> None:
    scorer = scorer_of("llama-v0.2")
    Reference(checkpoint_of("llama-v0.2")).model.save_pretrained(tmp_path, max_shard_size="200KB")
    AutoTokenizer.from_pretrained(checkpoint_of("llama-v0.2")).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    sharded = RewardScorer.load(ModelConfig(str(tmp_path), device="cpu"))
    # Not bit by bit: weights at other offsets in files are aligned differently in memory.
    ours = rewards(sharded, CONVERSATIONS)
    assert ours == pytest.approx(rewards(scorer, CONVERSATIONS), abs=1e-4, rel=0)
    assert sharded.fingerprint.revision != scorer.fingerprint.revision


def test_bfloat16_step_matches_torch() -> None:
    for reward in (0.3, 1.0, -1.99, 2.0, 4.0, -7.9, 8.0, 23.0):
        value = torch.tensor(reward).bfloat16()
        after = torch.nextafter(value, torch.tensor(torch.inf, dtype=torch.bfloat16) * value.sign())
        assert bfloat16_step(reward) == abs(float(after) - float(value))
