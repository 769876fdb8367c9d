"""The choice of a batch: the oldest in it, within the budget, groups whole, never wasteful."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rm_core import pack
from serve.batch_choice import choose

Ids = tuple[int, ...]
WAITING = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple),
    min_size=1,
    max_size=20,
    unique=True,
)


def size(batch: list[Ids]) -> int:
    return pack(batch, 10**6).num_tokens


@given(WAITING, st.integers(1, 30))
def test_the_first_is_in_and_the_budget_is_kept(waiting: list[Ids], budget: int) -> None:
    batch = choose(waiting, budget)
    assert waiting[0] in batch
    assert len(set(batch)) == len(batch)
    assert set(batch) <= set(waiting)
    assert size(batch) <= budget or batch == [waiting[0]]
    # What the scorer makes of it is one batch again.
    assert len(pack(batch, budget).batches) == 1


@given(WAITING)
def test_all_that_fits_together_goes_together(waiting: list[Ids]) -> None:
    assert sorted(choose(waiting, size(waiting))) == sorted(waiting)


@given(WAITING, st.integers(1, 30))
def test_taking_batch_after_batch_takes_everything(waiting: list[Ids], budget: int) -> None:
    taken: list[Ids] = []
    rest = waiting
    while rest:
        batch = choose(rest, budget)
        taken += batch
        rest = [sequence for sequence in rest if sequence not in batch]
    assert sorted(taken) == sorted(waiting)


def test_a_group_that_does_not_fit_any_more_is_left_whole() -> None:
    groups = [[(g,) * 40 + (i,) for i in range(10)] for g in range(3)]  # 50 tokens each
    waiting = [groups[1][4], *groups[0], *groups[2], *groups[1][:4], *groups[1][5:]]
    assert choose(waiting, 95) == groups[1]  # 4 more would fit, and cost their prompt again
    assert choose(waiting, 145) in (groups[0] + groups[1], groups[1] + groups[2])
    assert choose(waiting, 150) == groups[0] + groups[1] + groups[2]


def test_where_nothing_is_shared_the_batch_is_full() -> None:
    waiting = [(i,) * 5 for i in (3, 9, 1, 7, 5, 0, 8, 2, 6, 4)]
    assert len(choose(waiting, 20)) == 4
    assert len(choose(waiting, 24)) == 4


def test_a_group_over_the_budget_fills_its_batches() -> None:
    waiting = [(7,) * 9 + (i,) for i in (3, *range(3), *range(4, 22))]
    batch = choose(waiting, 20)
    assert (7,) * 9 + (3,) in batch
    assert len(batch) == 11


def test_one_over_the_budget_goes_alone() -> None:
    assert choose([(1,) * 30, (1,) * 3], 20) == [(1,) * 30]
    assert choose([(1,) * 3, (1,) * 30], 20) == [(1,) * 3]
