"""The prefix cache: what it returns was computed for that prefix, and rewards do not change."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import limit_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_core import BatchConfig, ModelConfig, ModelLoadError, RewardScorer
from rm_core.memory import choose_prefix_cache_size, compute_key_value_bytes
from rm_core.model.forward import forward_batch
from rm_core.model.placement import install_transfer_hooks
from rm_core.packing import MAX_KEYS_PER_TOKEN, PrefixTree, TokenIds, pack
from rm_core.prefix_cache import CachedBatch, PrefixCache

PathOf = Callable[[str], Path]
ScorerOf = Callable[..., RewardScorer]
CPU = torch.device("cpu")
FAMILIES = ["llama-v0.1", "qwen3", "gemma2"]

# Few tokens and short sequences: prefixes shared at every depth, duplicates, prefixes of others.
SEQUENCES = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), min_size=1, max_size=12
)
# A batch, the number of its salts, how many tokens of each sequence to keep, and whether the
# forward pass fails.
STEPS = st.lists(
    st.tuples(SEQUENCES, st.integers(1, 2), st.integers(0, 7), st.booleans()),
    min_size=1,
    max_size=12,
)
Steps = list[tuple[list[TokenIds], int, int, bool]]


def tree_of(sequences: Sequence[TokenIds], num_salts: int = 1) -> PrefixTree:
    salts = [str(index % num_salts) for index in range(len(sequences))]
    (tree,) = pack(sequences, 10**6, salts=salts).batches
    return tree


Prefix = tuple[str, TokenIds]
"""A salt, and tokens from the start of a sequence."""


def row_of(tree: PrefixTree) -> list[Prefix]:
    """Return the prefix that ends at each token of the row."""
    return [
        (
            tree.salts[segment.sequence],
            tree.sequences[segment.sequence][: segment.depth + index + 1],
        )
        for segment in tree.row_segments
        for index in range(len(segment.token_ids))
    ]


def find_segment(tree: PrefixTree, key: int) -> int:
    (index,) = [i for i, s in enumerate(tree.segments) if s.start <= key < s.stop]
    return index


@given(SEQUENCES, st.data())
def test_a_tree_without_cached_tokens_still_has_every_path(
    sequences: list[TokenIds], data: st.DataObject
) -> None:
    tree = tree_of(sequences)
    ends = {(find_segment(tree, end), end) for end in tree.ends}
    counts: list[int] = []
    for index, segment in enumerate(tree.segments):
        parent = tree.segments[segment.parent]
        is_open = segment.parent >= 0 and parent.depth + counts[segment.parent] < segment.depth
        limit = min(
            [len(segment.token_ids)] + [end - segment.start for i, end in ends if i == index]
        )
        counts.append(0 if is_open else data.draw(st.integers(0, limit)))
    row = tree.exclude_cached(counts)
    assert row.num_cached_tokens == sum(counts)
    assert row.num_keys == tree.num_tokens
    tokens = [token for segment in row.segments for token in segment.token_ids]
    for sequence, end in zip(row.sequences, row.ends, strict=True):
        key = row.num_cached_tokens + end
        path = row.get_path(find_segment(row, key), key + 1)
        assert tuple(t for start, stop in path for t in tokens[start:stop]) == sequence
    assert [ids[-1] for _, ids in row_of(row)] == tokens[row.num_cached_tokens :]


class Keys:
    """Stands for a layer: the key of a token is a number for the prefix that ends there."""

    def __init__(self, num_slots: int, min_tokens: int = 1) -> None:
        self.cache = PrefixCache(num_slots, 1, 1, torch.float64, [CPU], min_tokens)
        self._numbers: dict[Prefix, int] = {}

    def number(self, prefix: Prefix) -> int:
        return self._numbers.setdefault(prefix, len(self._numbers) + 1)

    def run(self, tree: PrefixTree, num_kept: Sequence[int], fails: bool = False) -> CachedBatch:
        """Run a batch, and check that every sequence gets the keys of its own prefixes."""
        batch = self.cache.acquire(tree, num_kept)
        keys = torch.tensor([self.number(prefix) for prefix in row_of(batch.tree)]).double()
        keys, values = batch.extend(0, keys.view(-1, 1, 1), -keys.view(-1, 1, 1))
        assert torch.equal(keys, -values)
        paths = zip(batch.tree.salts, batch.tree.sequences, batch.tree.ends, strict=True)
        for salt, ids, end in paths:
            key = batch.tree.num_cached_tokens + end
            path = batch.tree.get_path(find_segment(batch.tree, key), key + 1)
            found = torch.cat([keys[start:stop] for start, stop in path]).flatten().tolist()
            assert found == [self.number((salt, ids[:n])) for n in range(1, len(ids) + 1)]
        self.cache.release(batch) if fails else self.cache.commit(batch)
        return batch


@given(st.integers(1, 40), st.integers(1, 4), STEPS)
def test_cached_keys_are_those_of_the_same_prefix(
    num_slots: int, min_tokens: int, steps: Steps
) -> None:
    """Any batches, any lengths to keep, failures, evictions, one slot only."""
    keys = Keys(num_slots, min_tokens)
    for sequences, num_salts, num_kept, fails in steps:
        tree = tree_of(sequences, num_salts)
        keys.run(tree, [min(num_kept, len(ids)) for ids in tree.sequences], fails)
        assert 0 <= keys.cache.num_tokens <= num_slots


@given(STEPS)
def test_prefixes_are_found_and_kept_to_the_token(steps: Steps) -> None:
    """With enough room, what was kept is never computed again, except at the end of a sequence."""
    keys, kept = Keys(10_000), set[Prefix]()
    for sequences, num_salts, num_kept, fails in steps:
        tree = tree_of(sequences, num_salts)
        counts = [min(num_kept, len(ids)) for ids in tree.sequences]
        ends = set(zip(tree.salts, tree.sequences, strict=True))
        row = row_of(keys.run(tree, counts, fails).tree)
        # After an end, a path is computed to its own end.
        after_end = {
            (salt, ids)
            for salt, ids in row
            if any((salt, ids[:n]) in ends for n in range(len(ids)))
        }
        assert not (set(row) - ends - after_end) & kept
        if not fails:
            for salt, ids, count in zip(tree.salts, tree.sequences, counts, strict=True):
                kept |= {(salt, ids[: n + 1]) for n in range(count)}
        assert keys.cache.num_tokens == len(kept)
        assert keys.cache.num_bytes == 16 * len(kept)


def test_least_recently_used_prefixes_go_first_and_from_their_ends() -> None:
    keys = Keys(9)
    first, second, third = ((i, 10, 11, 12, 13) for i in range(3))
    keys.run(tree_of([first]), [4])
    keys.run(tree_of([second]), [4])
    keys.run(tree_of([first]), [4])
    keys.run(tree_of([third]), [4])
    assert [keys.cache.count((*ids[:4], 99), "0") for ids in (first, second, third)] == [4, 1, 4]


def test_a_batch_never_evicts_what_it_reads() -> None:
    keys = Keys(4)
    prompt = (1, 2, 3, 4)
    keys.run(tree_of([(*prompt, 5)]), [4])
    keys.run(tree_of([(*prompt, 6), (7, 8, 9, 10, 11)]), [4, 4])
    assert keys.cache.count((*prompt, 9), "0") == 4
    assert keys.cache.count((7, 8, 9, 10, 11), "0") == 0


def test_another_salt_finds_nothing() -> None:
    keys, sequence = Keys(16), (1, 2, 3, 4)
    keys.run(tree_of([sequence]), [3])
    assert (keys.cache.count(sequence, "0"), keys.cache.count(sequence, "1")) == (3, 0)
    batch = keys.run(tree_of([sequence, sequence], 2), [3, 3])
    assert sorted(row_of(batch.tree)) == [
        ("0", sequence),
        *(("1", sequence[:n]) for n in range(1, 5)),
    ]


def test_a_short_prefix_is_computed_again() -> None:
    cache = PrefixCache(64, 1, 1, torch.float64, [CPU], min_tokens=3)
    for prompt, num_found in (((1, 2), 0), ((1, 2, 3), 3)):
        cache.commit(cache.acquire(tree_of([(*prompt, 9)]), [len(prompt)]))
        assert cache.count((*prompt, 8), "0") == num_found
        batch = cache.acquire(tree_of([(*prompt, 8)]), [len(prompt)])
        assert batch.tree.num_cached_tokens == num_found
        cache.release(batch)


@given(SEQUENCES, SEQUENCES, st.integers(1, 6))
def test_a_prefix_that_is_long_enough_is_read_in_any_batch(
    first: list[TokenIds], second: list[TokenIds], min_tokens: int
) -> None:
    """Also where other sequences of the batch share only its first tokens."""
    keys, ends = Keys(10_000, min_tokens), [(*ids, 9) for ids in second]
    kept = tree_of([(*ids, 8) for ids in first])
    keys.run(kept, [len(ids) - 1 for ids in kept.sequences])
    found = {ids: keys.cache.count(ids, "0") for ids in ends}
    tree = tree_of(ends)
    row = set(row_of(keys.run(tree, [0] * len(tree.sequences)).tree))
    for ids, count in found.items():
        assert not row & {("0", ids[: n + 1]) for n in range(count)}


def test_a_new_sequence_reads_only_what_a_longer_cached_prefix_needs() -> None:
    """Two tokens of the new one are cached, too few, and the other one needs the first of them."""
    keys = Keys(64, min_tokens=3)
    keys.run(tree_of([(5, 6, 9), (5, 1, 1, 1, 9)]), [2, 4])
    batch = keys.run(tree_of([(5, 6, 7, 7), (5, 1, 1, 1, 8)]), [0, 0])
    assert sorted(ids for _, ids in row_of(batch.tree)) == [
        (5, 1, 1, 1, 8),
        (5, 6),
        (5, 6, 7),
        (5, 6, 7, 7),
    ]


def test_clear_forgets_everything() -> None:
    keys = Keys(8)
    keys.run(tree_of([(1, 2, 3, 4)]), [4])
    keys.cache.clear()
    assert keys.cache.num_tokens == keys.cache.count((1, 2, 3, 4), "0") == 0
    keys.run(tree_of([(1, 2, 3, 4)]), [4])
    assert keys.cache.num_tokens == 4


def test_cached_tokens_take_no_room_in_a_row_but_keys_are_bounded() -> None:
    sequences = [(prompt, *range(10, 19), answer) for prompt in range(40) for answer in (50, 51)]
    assert [batch.num_tokens for batch in pack(sequences, 24).batches] == [24] * 20
    batches = pack(sequences, 24, lambda ids, _: len(ids) - 1).batches
    num_batches = 20 // MAX_KEYS_PER_TOKEN
    assert [batch.num_tokens for batch in batches] == [24 * MAX_KEYS_PER_TOKEN] * num_batches


# Conversations


def talks(seed: int, num_talks: int) -> list[list[dict[str, str]]]:
    """Return conversations of few prompts and turns, so that parts of any path recur."""
    draw = random.Random(seed)
    words = ["apples", "and", "pears", "2 + 2", "中国", "é", "\n"]

    def text(longest: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, longest)))

    prompts = [[{"role": "user", "content": text(60)}] for _ in range(3)]
    prompts += [
        [*prompt, {"role": "assistant", "content": text(9)}, {"role": "user", "content": text(9)}]
        for prompt in prompts
    ]
    return [
        [*draw.choice(prompts), {"role": "assistant", "content": text(20)}]
        for _ in range(num_talks)
    ]


def rewards_of(scorer: RewardScorer, conversations: Sequence[object]) -> list[float]:
    return [result.reward for result in scorer.score(conversations)]  # type: ignore[union-attr]


def score_in_parts(scorer: RewardScorer, conversations: list[Any], seed: int) -> list[float]:
    """Score conversations in a random order, in parts of random size."""
    draw = random.Random(seed)
    order = draw.sample(range(len(conversations)), len(conversations))
    rewards = [0.0] * len(conversations)
    while order:
        part = [order.pop() for _ in range(min(len(order), draw.randint(1, 6)))]
        part_rewards = rewards_of(scorer, [conversations[index] for index in part])
        for index, reward in zip(part, part_rewards, strict=True):
            rewards[index] = reward
    return rewards


def with_cache(scorer: RewardScorer, num_tokens: int | None, budget: int = 512) -> RewardScorer:
    """Return a scorer of the same weights whose cache holds so many tokens; None: automatic."""
    model = scorer.loaded_model.model
    per_token = compute_key_value_bytes(model.config, model.dtype)
    num_bytes = None if num_tokens is None else num_tokens * per_token
    return RewardScorer(scorer.loaded_model, BatchConfig(budget, prefix_cache_bytes=num_bytes))


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=limit_examples(10))
@given(seed=st.integers(0, 10**6), num_tokens=st.sampled_from([None, 1, 7, 64, 300]))
def test_rewards_are_those_without_a_cache(
    name: str, seed: int, num_tokens: int | None, scorer_of: ScorerOf
) -> None:
    conversations = talks(seed, 16)
    expected = rewards_of(with_cache(scorer_of(name), 0), conversations)
    scorer = with_cache(scorer_of(name), num_tokens)
    for part_seed in (seed, seed + 1):
        assert score_in_parts(scorer, conversations, part_seed) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("num_tokens", [None, 5, 150])
def test_deterministic_rewards_are_equal_to_the_bit(
    name: str, num_tokens: int | None, checkpoint_of: PathOf
) -> None:
    conversations = talks(3, 24)
    config = ModelConfig(str(checkpoint_of(name)), device="cpu", deterministic=True)
    loaded = RewardScorer.load(config)
    expected = rewards_of(with_cache(loaded, 0, 256), conversations)
    scorer = with_cache(loaded, num_tokens, 256)
    for seed in (0, 1):
        assert score_in_parts(scorer, conversations, seed) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_on_two_devices_keep_their_own_keys(name: str, checkpoint_of: PathOf) -> None:
    config = ModelConfig(str(checkpoint_of(name)), device="cpu", deterministic=True)
    plain, split = RewardScorer.load(config), RewardScorer.load(config)
    install_transfer_hooks(split.loaded_model.model, (CPU, CPU))
    loaded = dataclasses.replace(split.loaded_model, devices=(CPU, CPU))
    scorer, conversations = RewardScorer(loaded), talks(4, 12)
    assert score_in_parts(scorer, conversations, 0) == rewards_of(plain, conversations)


def test_answers_that_arrive_one_by_one_cost_the_prompt_once(scorer_of: ScorerOf) -> None:
    scorer = with_cache(scorer_of("qwen3"), None)
    prompt = {"role": "user", "content": "apples " * 100}
    ids = [
        scorer.encoder.encode([prompt, {"role": "assistant", "content": f"{i} pears"}]).input_ids
        for i in range(8)
    ]
    num_prompt_tokens = scorer.encoder.count_prompt_tokens(ids[0])
    results = [scorer.score_ids([sequence]) for sequence in ids]
    assert results[0].num_computed_tokens == len(ids[0])
    assert results[0].num_prefix_tokens == 0
    for sequence, result in zip(ids[1:], results[1:], strict=True):
        assert result.num_prefix_tokens == num_prompt_tokens
        assert result.num_computed_tokens == len(sequence) - num_prompt_tokens
    per_token = compute_key_value_bytes(scorer.loaded_model.model.config, torch.float32)
    assert results[-1].prefix_cache_bytes == num_prompt_tokens * per_token


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_ends_where_the_last_answer_begins(name: str, scorer_of: ScorerOf) -> None:
    """Up to two tokens: the first token of the answer may be merged with the line before it."""
    encoder = scorer_of(name).encoder
    turns = [
        {"role": "user", "content": "apples and pears"},
        {"role": "assistant", "content": "2 + 2"},
        {"role": "user", "content": "pears"},
    ]
    first, second = (
        encoder.encode([*turns, {"role": "assistant", "content": answer}]).input_ids
        for answer in ("apples " * 20, "中国")
    )
    num_shared = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    for sequence in (first, second):
        assert abs(encoder.count_prompt_tokens(sequence) - num_shared) <= 2


def test_sequences_without_the_marker_keep_nothing(scorer_of: ScorerOf) -> None:
    encoder = scorer_of("qwen3").encoder
    ids = encoder.encode(
        [{"role": "user", "content": "apples"}, {"role": "assistant", "content": "2"}]
    )
    before_marker = ids.input_ids[1:4]
    assert encoder.count_prompt_tokens(before_marker) == 0


def test_a_failed_batch_leaves_nothing_in_the_cache(scorer_of: ScorerOf) -> None:
    loaded = scorer_of("qwen3").loaded_model
    is_broken = True

    def forward(*arguments: Any) -> list[float]:
        logits = forward_batch(*arguments)
        if is_broken:
            raise RuntimeError("the layer is broken")
        return logits

    scorer = RewardScorer(loaded, BatchConfig(512), forward)
    conversations = talks(5, 6)
    assert {result.code for result in scorer.score(conversations)} == {"scoring_failed"}  # type: ignore[union-attr]
    is_broken = False
    encoded = [scorer.encoder.encode(talk).input_ids for talk in conversations]
    result = scorer.score_ids(encoded[:1])
    assert (result.num_prefix_tokens, result.num_computed_tokens) == (0, len(encoded[0]))
    expected = rewards_of(with_cache(scorer, 0), conversations)
    assert rewards_of(scorer, conversations) == pytest.approx(expected, abs=5e-5)


def test_a_cache_of_a_given_size_and_no_cache(scorer_of: ScorerOf) -> None:
    loaded = scorer_of("qwen3").loaded_model
    per_token = compute_key_value_bytes(loaded.model.config, torch.float32)
    info = RewardScorer(loaded, BatchConfig(512, 10 * per_token + 1)).describe()
    assert (info.prefix_cache_tokens, info.prefix_cache_bytes) == (10, 10 * per_token)
    assert "prefix_cache_bytes" in info.prefix_cache_reason
    assert RewardScorer(loaded, BatchConfig(512, 1)).describe().prefix_cache_tokens == 0
    with pytest.raises(ModelLoadError, match=r"prefix_cache_bytes is -1; give 0 for no cache"):
        BatchConfig(prefix_cache_bytes=-1)


def test_an_automatic_size_is_bounded_by_memory_and_by_batches(
    scorer_of: ScorerOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = scorer_of("qwen3").loaded_model.model.config
    per_token = compute_key_value_bytes(config, torch.bfloat16)
    for free, budget, tokens, reason in (
        (80 << 30, 4096, 64 * 4096, "prompts of 64 full batches"),
        (80 << 30, 1 << 20, (2 << 30) // per_token, "2 GiB"),
        (0, 4096, 0, "12.5% of"),
    ):
        monkeypatch.setattr("rm_core.memory._get_free_bytes", lambda _, free=free: free)
        size = choose_prefix_cache_size(None, config, torch.bfloat16, [CPU], budget)
        assert (size.num_tokens, size.num_bytes) == (tokens, tokens * per_token)
        assert size.reason.startswith(reason)
