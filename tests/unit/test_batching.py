"""Forming a batch: contains the oldest sequence, keeps the budget, does not split groups."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rm_core import pack
from serve.scheduler import batching
from serve.scheduler.batching import apportion, compute_tree_size

Ids = tuple[int, ...]
PENDING = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple),
    min_size=1,
    max_size=20,
    unique=True,
)


def form_batch(pending: list[Ids], budget: int) -> list[Ids]:
    batch = batching.form_batch(pending, budget)
    assert batch.sequences == sorted(batch.members)
    assert batch.num_tokens == size(batch.sequences) == compute_tree_size(batch.sequences)
    return batch.sequences


def size(batch: list[Ids]) -> int:
    return pack(batch, 10**6).num_tokens


@given(PENDING, st.integers(1, 30))
def test_batch_contains_first_sequence_and_keeps_budget(pending: list[Ids], budget: int) -> None:
    batch = form_batch(pending, budget)
    assert pending[0] in batch
    assert len(set(batch)) == len(batch)
    assert set(batch) <= set(pending)
    assert size(batch) <= budget or batch == [pending[0]]
    # The scorer packs it into one batch again.
    assert len(pack(batch, budget).batches) == 1


@given(PENDING)
def test_sequences_that_fit_form_one_batch(pending: list[Ids]) -> None:
    assert sorted(form_batch(pending, size(pending))) == sorted(pending)


@given(PENDING, st.integers(1, 30))
def test_successive_batches_take_every_sequence(pending: list[Ids], budget: int) -> None:
    taken: list[Ids] = []
    rest = pending
    while rest:
        batch = form_batch(rest, budget)
        taken += batch
        rest = [sequence for sequence in rest if sequence not in batch]
    assert sorted(taken) == sorted(pending)


def test_group_that_does_not_fit_is_not_split() -> None:
    groups = [[(g,) * 40 + (i,) for i in range(10)] for g in range(3)]  # 50 tokens each
    pending = [groups[1][4], *groups[0], *groups[2], *groups[1][:4], *groups[1][5:]]
    assert form_batch(pending, 95) == groups[1]  # 4 more would fit, and encode their prompt twice
    assert form_batch(pending, 145) in (groups[0] + groups[1], groups[1] + groups[2])
    assert form_batch(pending, 150) == groups[0] + groups[1] + groups[2]


def test_batch_of_unrelated_sequences_is_full() -> None:
    pending = [(i,) * 5 for i in (3, 9, 1, 7, 5, 0, 8, 2, 6, 4)]
    assert len(form_batch(pending, 20)) == 4
    assert len(form_batch(pending, 24)) == 4


def test_group_over_budget_fills_batches() -> None:
    pending = [(7,) * 9 + (i,) for i in (3, *range(3), *range(4, 22))]
    batch = form_batch(pending, 20)
    assert (7,) * 9 + (3,) in batch
    assert len(batch) == 11


def test_sequence_over_budget_goes_alone() -> None:
    assert form_batch([(1,) * 30, (1,) * 3], 20) == [(1,) * 30]
    assert form_batch([(1,) * 3, (1,) * 30], 20) == [(1,) * 3]


def test_order_is_kept_if_little_is_shared() -> None:
    """Neighbors in token order do not pass sequences that have waited longer."""
    pending = [(5, 1, 1, 1), (9, 1, 1, 1), (1, 1, 1, 1), (5, 2, 2, 2), (5, 3, 3, 3)]
    assert form_batch(pending, 12) == sorted(pending[:3])


def test_prefix_common_to_all_sequences_forms_no_group() -> None:
    system = (7,) * 100
    pending = [(*system, *[i] * 20) for i in (5, 9, 1, 6, 4, 8, 2)]
    assert form_batch(pending, 165) == sorted(pending[:3])


@given(st.integers(0, 100), st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_apportion_returns_integers_that_add_up_to_total(total: int, weights: list[int]) -> None:
    shares = apportion(total, weights)
    assert sum(shares) == total
    total_weight = sum(weights)
    assert all(
        abs(share - total * weight / total_weight) < 1
        for share, weight in zip(shares, weights, strict=True)
    )
