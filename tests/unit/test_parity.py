"""Rewards equal those of plain transformers, for every family and kind of checkpoint."""

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
from hypothesis import given
from hypothesis import strategies as st
from reference import CONVERSATIONS, LONG, Messages, Reference, talk
from transformers import AutoTokenizer

from rm_core import BatchConfig, ModelConfig, Reward, RewardScorer
from rm_core.rounding import bfloat16_step

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
def test_float32(name: str, attention: str, scorer_of: ScorerOf, checkpoint_of: PathOf) -> None:
    ours = rewards(scorer_of(name, "float32", attention), conversations_for(name))
    assert ours == pytest.approx(references(name, checkpoint_of(name)), abs=1e-4, rel=0)
    assert max(ours) - min(ours) > 1  # else any two wrong rewards would be equal


@pytest.mark.parametrize("name", SPECS)
def test_bfloat16(name: str, scorer_of: ScorerOf, checkpoint_of: PathOf) -> None:
    scorer = scorer_of(name, "bfloat16")
    assert {p.dtype for p in scorer.loaded_model.model.parameters()} == {torch.bfloat16}
    assert scorer.loaded_model.head.dtype == torch.float32
    assert scorer.describe()["head_dtype"] == "float32"
    ours = rewards(scorer, conversations_for(name))
    expected = references(name, checkpoint_of(name), "bfloat16")
    for our, theirs in zip(ours, expected, strict=True):
        assert abs(our - theirs) <= bfloat16_step(theirs)
    # Rewards rounded to bfloat16 would all be multiples of their step.
    assert any(our % bfloat16_step(our) for our in ours)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma2", {"sliding_window": 4096}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("llama-v0.2", {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
    ],
)
def test_what_makes_a_family_special_changes_its_rewards(
    name: str, changes: dict[str, Any], scorer_of: ScorerOf, checkpoint_of: PathOf
) -> None:
    """Without this, parity on these checkpoints would prove nothing about these parts."""
    without = references(name, checkpoint_of(name), **changes)
    ours = rewards(scorer_of(name), conversations_for(name))
    differences = [abs(a - b) for a, b in zip(ours, without, strict=True)]
    assert max(differences) > 0.05
    assert sum(difference > 0.01 for difference in differences) >= 3


def test_the_long_conversations_are_longer_than_the_window(scorer_of: ScorerOf) -> None:
    scorer = scorer_of("gemma2")
    window = scorer.loaded_model.model.config.sliding_window
    lengths = [scorer.encoder.encode(m).num_tokens for m in CONVERSATIONS]
    assert sum(length > 2 * window for length in lengths) >= 3
    assert min(lengths) < window


# Few tokens: shared prefixes at any depth, one sequence a prefix of another, differences of one.
TREES = st.lists(
    st.lists(st.integers(20, 22), min_size=1, max_size=90).map(tuple), min_size=1, max_size=64
)


@pytest.mark.parametrize("attention", ["auto", "eager"])
@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3-pad-is-eos", "gemma2"])
@hypothesis.settings(max_examples=15)
@given(sequences=TREES, data=st.data())
def test_any_tree(
    name: str,
    attention: str,
    scorer_of: ScorerOf,
    checkpoint_of: PathOf,
    sequences: list[tuple[int, ...]],
    data: st.DataObject,
) -> None:
    """Also in batches of any size, and however the sequences are cut from one another."""
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
    assert list(scored.rewards) == pytest.approx(expected, abs=1e-4, rel=0)
    assert scored.num_computed_tokens <= sum(map(len, set(sequences)))


@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3", "gemma2"])
def test_neighbours_and_order_change_next_to_nothing(name: str, scorer_of: ScorerOf) -> None:
    scorer = scorer_of(name)
    alone = [rewards(scorer, [messages])[0] for messages in CONVERSATIONS]
    order = random.Random(0).choices(range(len(CONVERSATIONS)), k=40)  # with duplicates
    assert len(set(order)) < len(order)
    together = rewards(scorer, [CONVERSATIONS[i] for i in order])
    assert together == pytest.approx([alone[i] for i in order], abs=1e-4, rel=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3", "gemma2"])
def test_the_batch_invariant_mode_changes_no_bit(
    name: str, dtype: str, checkpoint_of: PathOf
) -> None:
    """Alone, with any neighbours, in any order, and whatever is shared."""
    scorer = RewardScorer.load(
        ModelConfig(
            str(checkpoint_of(name)),
            dtype=dtype,  # type: ignore[arg-type]
            device="cpu",
            deterministic=True,
        )
    )
    assert scorer.describe()["deterministic"] is True
    assert scorer.fingerprint.attention == "eager"
    follow_ups = [[*talk(LONG, LONG), *talk("So how many?", str(n))] for n in range(5)]
    conversations = [*CONVERSATIONS, *follow_ups]
    alone = [rewards(scorer, [messages])[0] for messages in conversations]
    expected = Reference(checkpoint_of(name), getattr(torch, dtype))
    for messages, reward in zip(conversations, alone, strict=True):
        plain = expected.reward(messages)
        assert abs(reward - plain) <= (1e-4 if dtype == "float32" else bfloat16_step(plain))
    chance = random.Random(0)
    for _ in range(6):
        order = chance.sample(range(len(conversations)), k=chance.randint(2, len(conversations)))
        assert rewards(scorer, [conversations[i] for i in order]) == [alone[i] for i in order]


def test_the_batch_invariant_mode_has_one_length_of_rows(checkpoint_of: PathOf) -> None:
    """Kernels for larger models choose by the number of rows; here they happen not to."""
    config = ModelConfig(str(checkpoint_of("qwen3")), device="cpu", deterministic=True)
    scorer = RewardScorer.load(config, BatchConfig(max_batch_tokens=100))
    lengths: list[int] = []
    embedding = scorer.loaded_model.model.get_submodule("model.embed_tokens")
    embedding.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[-1]))
    sizes = [scorer.encoder.encode(messages).num_tokens for messages in CONVERSATIONS]
    rewards(scorer, CONVERSATIONS)
    assert len(lengths) > 3
    alone = {-(-size // 100) * 100 for size in sizes if size > 100}
    assert set(lengths) == {100} | alone


def test_a_sharded_checkpoint_scores_the_same(
    scorer_of: ScorerOf, checkpoint_of: PathOf, tmp_path: Path
) -> None:
    scorer = scorer_of("llama-v0.2")
    Reference(checkpoint_of("llama-v0.2")).model.save_pretrained(tmp_path, max_shard_size="200KB")
    AutoTokenizer.from_pretrained(checkpoint_of("llama-v0.2")).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    sharded = RewardScorer.load(ModelConfig(str(tmp_path), device="cpu"))
    # Not bit for bit: weights mapped from other places in files are aligned otherwise.
    ours = rewards(sharded, CONVERSATIONS)
    assert ours == pytest.approx(rewards(scorer, CONVERSATIONS), abs=1e-4, rel=0)
    assert sharded.fingerprint.revision != scorer.fingerprint.revision


def test_the_step_of_bfloat16() -> None:
    for reward in (0.3, 1.0, -1.99, 2.0, 4.0, -7.9, 8.0, 23.0):
        value = torch.tensor(reward).bfloat16()
        after = torch.nextafter(value, torch.tensor(torch.inf, dtype=torch.bfloat16) * value.sign())
        assert bfloat16_step(reward) == abs(float(after) - float(value))
