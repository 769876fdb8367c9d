"""Requests in pieces: nothing lost, in order, of bounded size, and enough of them to go round."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_core import pack
from serve.pieces import split

Ids = tuple[int, ...]
SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), max_size=25)


@given(SEQUENCES, st.integers(1, 20), st.integers(1, 4))
def test_every_sequence_is_sent_once_and_read_back_in_its_place(
    sequences: list[Ids], budget: int, num_replicas: int
) -> None:
    pieces = split(sequences, budget, num_replicas)
    sent = [sequence for piece in pieces.sequences for sequence in piece]
    assert sorted(sent) == sorted(set(sequences))
    assert all(pieces.sequences)
    assert pieces.restore(pieces.sequences) == sequences


def distinct(number: int) -> list[Ids]:
    return [(i,) * 10 for i in range(number)]


@pytest.mark.parametrize(
    ("number", "num_replicas", "sizes"),
    [
        (0, 1, []),
        (1, 1, [1]),
        (1, 4, [1]),
        (10, 1, [10]),  # 100 tokens, a budget of 20: five batches, one call
        (10, 2, [5, 5]),
        (4, 4, [2, 2]),  # a batch is not cut
        (40, 1, [16, 16, 8]),
    ],
)
def test_few_pieces_but_one_for_every_replica(
    number: int, num_replicas: int, sizes: list[int]
) -> None:
    pieces = split(distinct(number), 20, num_replicas)
    assert [len(piece) for piece in pieces.sequences] == sizes


def test_a_group_stays_together() -> None:
    groups = [[(g,) * 8 + (i,) for i in range(12)] for g in range(5)]
    pieces = split([s for i in range(12) for s in (group[i] for group in groups)], 20, 12)
    assert len(pieces.sequences) == 3
    assert sum(pack(piece, 10**6).num_tokens for piece in pieces.sequences) == 5 * (8 + 12)


def test_a_piece_is_small_enough_to_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.pieces._MAX_TOKENS", 1000)
    group = [(7,) * 90 + (i,) for i in range(100)]  # 190 tokens in one batch, 9,100 to be sent
    pieces = split(group, 16_384, 1)
    assert max(sum(map(len, piece)) for piece in pieces.sequences) <= 1000
    assert len(pieces.sequences) == 10
    assert pieces.restore(pieces.sequences) == group
    (alone,) = split([(7,) * 5000], 16_384, 1).sequences
    assert len(alone[0]) == 5000
