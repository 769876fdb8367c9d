"""Packing: no sequence is lost or duplicated, and batches keep the budget where possible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_core.packing import Packing, PrefixTree, TokenIds, pack, split_in_half

# Few tokens and short sequences: shared prefixes of every depth, duplicates, prefixes of others.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), max_size=30)
BUDGETS = st.integers(1, 40)


def row(tree: PrefixTree) -> list[int]:
    return [token for segment in tree.segments for token in segment.token_ids]


def find_segment(tree: PrefixTree, position: int) -> int:
    (index,) = [
        i for i, segment in enumerate(tree.segments) if segment.start <= position < segment.stop
    ]
    return index


def read_back(tree: PrefixTree) -> list[TokenIds]:
    """Restore every sequence from the row and the segments alone."""
    tokens = row(tree)
    return [
        tuple(
            token
            for start, stop in tree.get_path(find_segment(tree, end), end + 1)
            for token in tokens[start:stop]
        )
        for end in tree.ends
    ]


def trie_size(sequences: list[TokenIds]) -> int:
    """Return the number of nodes of the trie with one token each: the minimum to encode."""
    return len({sequence[:stop] for sequence in sequences for stop in range(1, len(sequence) + 1)})


def packed(packing: Packing) -> list[TokenIds]:
    return [sequence for tree in packing.batches for sequence in tree.sequences]


@given(SEQUENCES, BUDGETS)
def test_restore_gives_every_sequence_at_its_index(sequences: list[TokenIds], budget: int) -> None:
    packing = pack(sequences, budget)
    results = [sequence for tree in packing.batches for sequence in read_back(tree)]
    assert packing.restore(results) == sequences


@given(SEQUENCES, BUDGETS)
def test_equal_sequences_are_scored_once(sequences: list[TokenIds], budget: int) -> None:
    packing = pack(sequences, budget)
    assert sorted(packed(packing)) == sorted(set(sequences))
    assert packing.num_tokens <= sum(map(len, set(sequences)))


@given(SEQUENCES)
def test_shared_prefixes_are_encoded_once(sequences: list[TokenIds]) -> None:
    """At every depth: within a batch, no token occurs twice after the same prefix."""
    packing = pack(sequences, 10_000)
    assert len(packing.batches) == min(1, len(sequences))
    assert packing.num_tokens == trie_size(sequences)


@given(SEQUENCES, BUDGETS)
def test_segments_fill_the_row_without_gaps(sequences: list[TokenIds], budget: int) -> None:
    for tree in pack(sequences, budget).batches:
        assert [segment.start for segment in tree.segments] == [
            0,
            *(segment.stop for segment in tree.segments[:-1]),
        ]
        assert tree.num_tokens == len(row(tree)) == tree.segments[-1].stop
        assert all(segment.token_ids for segment in tree.segments)
        assert all(segment.parent < index for index, segment in enumerate(tree.segments))
        assert tree.num_tokens == trie_size(list(tree.sequences))


@given(SEQUENCES, BUDGETS)
def test_queries_that_see_a_token_are_contiguous_and_follow_it(
    sequences: list[TokenIds], budget: int
) -> None:
    """Kernels whose mask is one interval per key rely on this."""
    for tree in pack(sequences, budget).batches:
        seen_by: dict[int, list[int]] = {}
        for index, segment in enumerate(tree.segments):
            for query in range(segment.start, segment.stop):
                for start, stop in tree.get_path(index, query + 1):
                    for key in range(start, stop):
                        seen_by.setdefault(key, []).append(query)
        for key, queries in seen_by.items():
            assert queries == list(range(key, key + len(queries)))


@given(SEQUENCES, BUDGETS)
def test_batch_is_within_budget_or_has_one_sequence(sequences: list[TokenIds], budget: int) -> None:
    for tree in pack(sequences, budget).batches:
        assert tree.sequences
        assert tree.num_tokens <= budget or len(tree.sequences) == 1


@given(SEQUENCES.filter(lambda sequences: len(set(sequences)) > 1))
def test_split_in_half(sequences: list[TokenIds]) -> None:
    (tree,) = pack(sequences, 10_000).batches
    left, right = split_in_half(tree)
    assert (*left.sequences, *right.sequences) == tree.sequences
    assert 0 <= len(right.sequences) - len(left.sequences) <= 1
    assert read_back(left) + read_back(right) == list(tree.sequences)


def test_pack_example() -> None:
    packing = pack([(1, 2), (3,), (1, 2, 7), (4, 4, 4, 4, 4), (1, 2), (1, 5)], 4)
    assert [tree.sequences for tree in packing.batches] == [
        ((4, 4, 4, 4, 4),),
        ((3,),),
        ((1, 5), (1, 2, 7), (1, 2)),
    ]
    last = packing.batches[-1]
    assert [(segment.start, segment.depth, segment.parent) for segment in last.segments] == [
        (0, 0, -1),
        (2, 1, 0),
    ]
    assert row(last) == [1, 5, 2, 7]
    assert last.ends == (1, 3, 2)
    assert packing.restore("abcde") == ["e", "b", "d", "a", "e", "c"]
    assert packing.num_tokens == 10


def groups(num_groups: int, num_responses: int, prompt: int, response: int) -> list[TokenIds]:
    numbers = iter(range(10**9))
    return [
        (*start, *(next(numbers) for _ in range(response)))
        for start in [tuple(next(numbers) for _ in range(prompt)) for _ in range(num_groups)]
        for _ in range(num_responses)
    ]


@pytest.mark.parametrize("shared", [0, 50])
def test_groups_stay_in_one_batch(shared: int) -> None:
    """Also if all groups share a system prompt."""
    system = tuple(range(-shared, 0))
    sequences = [system + sequence for sequence in groups(40, 4, prompt=100, response=25)]
    packing = pack(sequences, 1_000)
    per_batch = [{s[: shared + 100] for s in tree.sequences} for tree in packing.batches]
    assert sum(map(len, per_batch)) == 40
    assert packing.num_tokens == 40 * 200 + shared * len(packing.batches)
    assert len(packing.batches) <= 10  # 8 if all were full


def test_group_over_budget_fills_its_batches() -> None:
    packing = pack(groups(1, 100, prompt=100, response=25), 1_000)
    assert [len(tree.sequences) for tree in packing.batches] == [36, 36, 28]


def test_no_sequences_give_no_batch() -> None:
    packing = pack([], 4)
    assert packing.batches == ()
    assert packing.restore([]) == []


@pytest.mark.parametrize("num_results", [0, 1, 3])
def test_restore_checks_the_number_of_results(num_results: int) -> None:
    with pytest.raises(AssertionError):
        pack([(1,), (2,)], 4).restore([0.0] * num_results)
