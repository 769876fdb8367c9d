"""The choice of a batch: the oldest in it, within the budget, groups whole, never wasteful."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rm_core import pack
from serve.scheduler import batching
from serve.scheduler.batching import apportion, compute_tree_size

Ids = tuple[int, ...]
WAITING = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple),
    min_size=1,
    max_size=20,
    unique=True,
)


def choose(waiting: list[Ids], budget: int) -> list[Ids]:
    batch = batching.form_batch(waiting, budget)
    assert batch.sequences == sorted(batch.members)
    assert batch.num_tokens == size(batch.sequences) == compute_tree_size(batch.sequences)
    return batch.sequences


def size(batch: list[Ids]) -> int:
    return pack(batch, 10**6).num_tokens


@given(WAITING, st.integers(1, 30))
def test_batch_contains_first_sequence_and_keeps_budget(waiting: list[Ids], budget: int) -> None:
    batch = choose(waiting, budget)
    assert waiting[0] in batch
    assert len(set(batch)) == len(batch)
    assert set(batch) <= set(waiting)
    assert size(batch) <= budget or batch == [waiting[0]]
    # What the scorer makes of it is one batch again.
    assert len(pack(batch, budget).batches) == 1


@given(WAITING)
def test_sequences_that_fit_form_one_batch(waiting: list[Ids]) -> None:
    assert sorted(choose(waiting, size(waiting))) == sorted(waiting)


@given(WAITING, st.integers(1, 30))
def test_successive_batches_take_every_sequence(waiting: list[Ids], budget: int) -> None:
    taken: list[Ids] = []
    rest = waiting
    while rest:
        batch = choose(rest, budget)
        taken += batch
        rest = [sequence for sequence in rest if sequence not in batch]
    assert sorted(taken) == sorted(waiting)


def test_group_that_does_not_fit_is_not_split() -> None:
    groups = [[(g,) * 40 + (i,) for i in range(10)] for g in range(3)]  # 50 tokens each
    waiting = [groups[1][4], *groups[0], *groups[2], *groups[1][:4], *groups[1][5:]]
    assert choose(waiting, 95) == groups[1]  # 4 more would fit, and cost their prompt again
    assert choose(waiting, 145) in (groups[0] + groups[1], groups[1] + groups[2])
    assert choose(waiting, 150) == groups[0] + groups[1] + groups[2]


def test_batch_of_unrelated_sequences_is_full() -> None:
    waiting = [(i,) * 5 for i in (3, 9, 1, 7, 5, 0, 8, 2, 6, 4)]
    assert len(choose(waiting, 20)) == 4
    assert len(choose(waiting, 24)) == 4


def test_group_over_budget_fills_batches() -> None:
    waiting = [(7,) * 9 + (i,) for i in (3, *range(3), *range(4, 22))]
    batch = choose(waiting, 20)
    assert (7,) * 9 + (3,) in batch
    assert len(batch) == 11


def test_sequence_over_budget_goes_alone() -> None:
    assert choose([(1,) * 30, (1,) * 3], 20) == [(1,) * 30]
    assert choose([(1,) * 3, (1,) * 30], 20) == [(1,) * 3]


def test_order_is_kept_if_little_is_shared() -> None:
    """Neighbours in the order of the token ids are no reason to pass those that wait longer."""
    waiting = [(5, 1, 1, 1), (9, 1, 1, 1), (1, 1, 1, 1), (5, 2, 2, 2), (5, 3, 3, 3)]
    assert choose(waiting, 12) == sorted(waiting[:3])


def test_prefix_common_to_all_sequences_forms_no_group() -> None:
    system = (7,) * 100
    waiting = [(*system, *[i] * 20) for i in (5, 9, 1, 6, 4, 8, 2)]
    assert choose(waiting, 165) == sorted(waiting[:3])


@given(st.integers(0, 100), st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_apportion_returns_integers_that_add_up_to_total(total: int, weights: list[int]) -> None:
    parts = apportion(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    assert all(
        abs(part - total * weight / whole) < 1 for part, weight in zip(parts, weights, strict=True)
    )
