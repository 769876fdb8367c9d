"""Bisection of calls whose actors die, simulated without Ray."""

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


def parse_number(messages: Messages) -> int:
    return int(messages[0]["content"])


def score_with_deaths(
    size: int, deadly: set[int], raising: set[int]
) -> tuple[ScoreBatchResult, int]:
    """Score one call with actors that die; return its result and the number of lost actors."""
    call = SubmittedCall([conversation(number) for number in range(size)], "error")
    waiting, num_lost = deque([WorkUnit.from_call(call)]), 0
    while waiting:
        unit = waiting.popleft()
        numbers = [parse_number(messages) for messages in unit.conversations]
        if deadly & set(numbers):
            num_lost += 1
            waiting += unit.handle_actor_loss()
        elif raising & set(numbers):
            waiting += unit.handle_error(ValueError("no"))
        else:
            unit.complete(ScoreBatchResult([Reward(float(n), 1) for n in numbers], len(numbers)))
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
def test_only_deadly_conversations_get_errors(case: tuple[int, set[int], set[int]]) -> None:
    size, deadly, raising = case
    scored, _ = score_with_deaths(size, deadly, raising)
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


def test_one_deadly_conversation_in_4000_costs_six_actors() -> None:
    assert score_with_deaths(4_000, {1_234}, set())[1] == 6
    assert score_with_deaths(1, {0}, set())[1] == 3


def test_call_that_loses_two_actors_by_chance_gets_all_rewards() -> None:
    call = SubmittedCall([conversation(0), conversation(1)], "error")
    (again,) = WorkUnit.from_call(call).handle_actor_loss()
    assert again.needs_own_actor
    first, second = again.handle_actor_loss()
    (first,) = first.handle_actor_loss()
    for unit in (second, first):
        unit.complete(ScoreBatchResult([Reward(1.0, 1)], 1))
    assert call.future.result(0).results == [Reward(1.0, 1)] * 2


def test_cancelled_call_does_not_start() -> None:
    call = SubmittedCall([conversation(0)], "error")
    assert call.future.cancel()
    assert not call.try_start()
    WorkUnit.from_call(call).complete(ScoreBatchResult([Reward(1.0, 1)], 1))
    other = SubmittedCall([conversation(0)], "error")
    assert other.try_start()
    assert other.try_start()
    assert not other.future.cancel()
    assert isinstance(other.future, Future)
