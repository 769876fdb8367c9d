"""What becomes of calls whose actors die: played with actors that a text kills, without Ray."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future

from hypothesis import given
from hypothesis import strategies as st

from rm_core import Reward, ScoreError
from rm_core.inputs.conversations import Messages
from serve.jobs.executors.base import ScoreBatchResult
from serve.jobs.executors.bisect import SubmittedCall, WorkUnit


def conversation(number: int) -> Messages:
    return [{"role": "user", "content": str(number)}]


def number_of(messages: Messages) -> int:
    return int(messages[0]["content"])


def played(size: int, deadly: set[int], raising: set[int]) -> tuple[ScoreBatchResult, int]:
    """The answer to one call, and how many actors it took with it."""
    call = SubmittedCall([conversation(number) for number in range(size)], "error")
    waiting, num_lost = deque([WorkUnit.from_call(call)]), 0
    while waiting:
        piece = waiting.popleft()
        numbers = [number_of(messages) for messages in piece.conversations]
        if deadly & set(numbers):
            num_lost += 1
            waiting += piece.handle_actor_loss()
        elif raising & set(numbers):
            waiting += piece.handle_error(ValueError("no"))
        else:
            piece.complete(ScoreBatchResult([Reward(float(n), 1) for n in numbers], len(numbers)))
    return call.future.result(0), num_lost


@given(
    st.integers(1, 300).flatmap(
        lambda size: st.tuples(
            st.just(size),
            st.sets(st.integers(0, size - 1), max_size=3),
            st.sets(st.integers(0, size - 1), max_size=3),
        )
    )
)
def test_all_but_the_deadly_get_their_rewards(case: tuple[int, set[int], set[int]]) -> None:
    size, deadly, raising = case
    scored, _ = played(size, deadly, raising)
    for number, result in enumerate(scored.results):
        if number in deadly:
            assert isinstance(result, ScoreError)
            assert result.code == "lost_replicas"
        elif number in raising:
            assert isinstance(result, ScoreError)
            assert result.code == "scoring_failed"
        else:
            assert result == Reward(float(number), 1)
    assert scored.num_computed_tokens == size - len(deadly | raising)


def test_one_in_4000_costs_six_actors() -> None:
    assert played(4_000, {1_234}, set())[1] == 6
    assert played(1, {0}, set())[1] == 3


def test_a_call_that_lost_two_actors_by_chance_gets_all_rewards() -> None:
    call = SubmittedCall([conversation(0), conversation(1)], "error")
    (again,) = WorkUnit.from_call(call).handle_actor_loss()
    assert again.needs_own_actor
    first, second = again.handle_actor_loss()
    (first,) = first.handle_actor_loss()
    for piece in (second, first):
        piece.complete(ScoreBatchResult([Reward(1.0, 1)], 1))
    assert call.future.result(0).results == [Reward(1.0, 1)] * 2


def test_what_nobody_waits_for_is_not_begun() -> None:
    call = SubmittedCall([conversation(0)], "error")
    assert call.future.cancel()
    assert not call.try_start()
    WorkUnit.from_call(call).complete(ScoreBatchResult([Reward(1.0, 1)], 1))
    other = SubmittedCall([conversation(0)], "error")
    assert other.try_start()
    assert other.try_start()
    assert not other.future.cancel()
    assert isinstance(other.future, Future)
