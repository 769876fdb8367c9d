"""Packing: nothing lost, nothing twice, no batch over the budget but one that has to be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_core.packing import pack

SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), max_size=25)
BUDGETS = st.integers(1, 20)


@given(SEQUENCES, BUDGETS)
def test_every_sequence_is_read_back_in_its_place(
    sequences: list[tuple[int, ...]], budget: int
) -> None:
    packing = pack(sequences, budget)
    results = [sequence for batch in packing.batches for sequence in batch]
    assert packing.restore(results) == sequences


@given(SEQUENCES, BUDGETS)
def test_equal_sequences_are_scored_once_in_order_of_appearance(
    sequences: list[tuple[int, ...]], budget: int
) -> None:
    packing = pack(sequences, budget)
    packed = [sequence for batch in packing.batches for sequence in batch]
    assert packed == list(dict.fromkeys(sequences))
    assert packing.num_tokens == sum(map(len, set(sequences)))
    assert packing.num_tokens <= sum(map(len, sequences))


@given(SEQUENCES, BUDGETS)
def test_a_batch_keeps_the_budget_or_holds_one_sequence(
    sequences: list[tuple[int, ...]], budget: int
) -> None:
    batches = pack(sequences, budget).batches
    sizes = [sum(map(len, batch)) for batch in batches]
    assert all(batches)
    assert all(
        size <= budget or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True)
    )
    # Greedy: the first sequence of a batch did not fit into the batch before it.
    assert all(
        size + len(after[0]) > budget for size, after in zip(sizes, batches[1:], strict=False)
    )


def test_packing_by_hand() -> None:
    packing = pack([(1, 2), (3,), (1, 2), (4, 4, 4, 4, 4), (5, 5)], 4)
    assert packing.batches == (((1, 2), (3,)), ((4, 4, 4, 4, 4),), ((5, 5),))
    assert packing.restore("abcd") == ["a", "b", "a", "c", "d"]
    assert packing.num_tokens == 10


def test_nothing_gives_no_batch() -> None:
    packing = pack([], 4)
    assert packing.batches == ()
    assert packing.restore([]) == []


@pytest.mark.parametrize("num_results", [0, 1, 3])
def test_a_lost_or_an_extra_result_is_noticed(num_results: int) -> None:
    with pytest.raises(AssertionError):
        pack([(1,), (2,)], 4).restore([0.0] * num_results)
