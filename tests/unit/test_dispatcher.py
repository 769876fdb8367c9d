"""The queue of a model: shares batches, keeps turns, looks at no more than it must."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from dispatcher_harness import (
    BUDGET,
    Ids,
    Line,
    reward_of,
    rewards,
    scenario,
    until,
)
from hypothesis import given
from hypothesis import strategies as st

from rm_core import ScoredBatch, pack

SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), max_size=12)


@scenario
async def test_pending_sequences_share_batch_and_equal_ones_run_once(line: Line) -> None:
    await line.hold()
    calls = [
        line.ask((1, 1, 1), (2, 2)),
        line.ask((2, 2)),
        line.ask((1, 1, 2), (2, 2), (1, 1, 2)),
    ]
    await until(lambda: line.queue.num_waiting == 3)
    assert line.queue.queued_tokens == 8
    line.release()
    assert await rewards(calls[0]) == [reward_of((1, 1, 1)), reward_of((2, 2))]
    assert await rewards(calls[1]) == [reward_of((2, 2))]
    assert await rewards(calls[2]) == [reward_of(s) for s in ((1, 1, 2), (2, 2), (1, 1, 2))]
    assert line.replicas.batches == [[(99,)], [(1, 1, 1), (1, 1, 2), (2, 2)]]
    assert line.replicas.backlogs == [0, 0]
    report = line.told.reports[1]
    assert (report.num_sequences, report.num_tokens, report.num_computed_tokens) == (3, 8, 6)
    assert len(report.queue_durations_s) == 5


@scenario
async def test_sequence_in_flight_is_not_scored_again(line: Line) -> None:
    first = await line.hold()
    second = line.ask((99,), (5,))
    await until(lambda: line.queue.num_waiting == 1)
    line.release()
    assert await rewards(first) == [reward_of((99,))]
    assert await rewards(second) == [reward_of((99,)), reward_of((5,))]
    assert line.replicas.batches == [[(99,)], [(5,)]]


@scenario
async def test_later_sequences_join_batch_of_their_prompt(line: Line) -> None:
    await line.hold()
    prompt, other = (7,) * 12, (3,) * 12
    calls = [
        line.ask((*prompt, 1)),
        line.ask((*other, 1), (*other, 2)),
        line.ask((*prompt, 2), (*prompt, 3)),
    ]
    await until(lambda: line.queue.num_waiting == 5)
    line.release()
    await asyncio.gather(*calls)
    assert [{sequence[0] for sequence in batch} for batch in line.replicas.batches] == [
        {99},
        {7},
        {3},
    ]


@scenario
async def test_large_request_delays_small_one_by_one_batch_at_most(line: Line) -> None:
    await line.hold()
    big = line.ask(*[(i, i, i, i, i) for i in range(400)])
    await until(lambda: line.queue.num_waiting == 400)

    num_held = iter([1])

    def hold_after_some(_: Sequence[Ids]) -> None:
        if len(line.replicas.batches) > 6 and next(num_held, None):
            line.replicas.go.clear()

    line.replicas.failure_at = hold_after_some
    line.release()
    await until(lambda: not line.replicas.go.is_set() and line.replicas.running == 2)
    num_waiting, sent = line.queue.num_waiting, len(line.replicas.batches)
    small = line.ask((7, 7, 8))
    await until(lambda: line.queue.num_waiting == num_waiting + 1)
    line.release()
    await rewards(small)
    assert [(7, 7, 8) in batch for batch in line.replicas.batches].index(True) <= sent
    assert len(await rewards(big)) == 400


@scenario
async def test_large_request_fills_batch_of_small_one_to_half(line: Line) -> None:
    await line.hold()
    big = line.ask(*[(i, i, i, i, i) for i in range(20)])
    small = line.ask((7, 7, 8))
    await until(lambda: line.queue.num_waiting == 21)
    line.release()
    await asyncio.gather(big, small)
    first, second = line.replicas.batches[1:3]
    assert (7, 7, 8) in first
    assert pack(first, 10**6).num_tokens <= BUDGET / 2
    assert pack(second, 10**6).num_tokens == BUDGET


@scenario
async def test_lower_priority_value_is_dispatched_first(line: Line) -> None:
    await line.hold()
    normal = line.ask(*[(i,) * 20 for i in range(5)])
    urgent = line.ask(*[(10 + i,) * 20 for i in range(3)], priority=-1)
    await until(lambda: line.queue.num_waiting == 8)
    line.release()
    await asyncio.gather(normal, urgent)
    order = [batch[0][0] for batch in line.replicas.batches[1:]]
    assert order == [10, 11, 12, 0, 1, 2, 3, 4]


@scenario
async def test_forming_batch_looks_at_bounded_part_of_queue(line: Line) -> None:
    await line.hold()
    looked_at: list[int] = []
    next_ones = line.queue._pool.peek

    def watched(num_tokens: int, **without: Any) -> Any:
        found = next_ones(num_tokens, **without)
        looked_at.append(sum(map(len, found)))
        return found

    line.queue._pool.peek = watched  # type: ignore[method-assign]
    call = line.ask(*[(i,) * 5 for i in range(2000)])
    await until(lambda: line.queue.num_waiting == 2000)
    line.release()
    assert len(await rewards(call)) == 2000
    assert max(looked_at) <= 5 * BUDGET
    assert len(line.replicas.batches) == 1 + 2000 * 5 / BUDGET
    assert line.replicas.backlogs[1] >= 2000 * 5 - 2 * BUDGET
    assert line.replicas.most_at_once <= 2
    assert line.replicas.backlogs[-1] == 0


@scenario
async def test_sequences_of_cancelled_request_are_not_scored(line: Line) -> None:
    first = await line.hold()
    gone = line.ask((1,), (2,))
    stays = line.ask((2,), (3,))
    await until(lambda: line.queue.num_waiting == 3)
    gone.cancel()
    await until(lambda: line.queue.num_waiting == 2)
    line.release()
    answer = await stays
    assert answer.batch.rewards == (reward_of((2,)), reward_of((3,)))
    assert answer.batch.num_computed_tokens == 2  # also what the other one would have paid
    assert line.replicas.batches[1:] == [[(2,), (3,)]]
    assert await rewards(first)


@scenario
async def test_cancelled_request_in_running_batch_does_not_affect_others(line: Line) -> None:
    line.replicas.go.clear()
    gone, stays = line.ask((1,)), line.ask((2,))
    await until(lambda: line.queue.num_in_flight == 1)
    gone.cancel()
    await asyncio.wait([gone])
    line.release()
    assert await rewards(stays) == [reward_of((2,))]
    assert await rewards(line.ask((1,))) == [reward_of((1,))]


@scenario
async def test_every_replica_gets_one_batch(line: Line) -> None:
    line.replicas.num_replicas = 3
    line.replicas.go.clear()
    call = line.ask(*[(i,) * 20 for i in range(9)])
    await until(lambda: line.queue.num_in_flight == 3)
    await asyncio.sleep(60)  # of virtual time: no replica gets a second one however long it takes
    assert line.replicas.most_at_once == 3
    line.release()
    assert len(await rewards(call)) == 9


@scenario
async def test_new_replica_gets_batch_with_next_request(line: Line) -> None:
    await line.hold()
    call = line.ask(*[(i,) * 20 for i in range(9)])
    await until(lambda: line.queue.num_waiting == 9)
    line.replicas.num_replicas = 2
    another = line.ask((4, 4))
    await until(lambda: line.queue.num_in_flight == 2)
    line.release()
    await asyncio.gather(call, another)


@scenario
async def test_request_without_sequences_returns_at_once(line: Line) -> None:
    answer = await line.ask()
    assert answer.batch == ScoredBatch((), 0)
    assert answer.fingerprints == frozenset()
    assert line.replicas.batches == []


@scenario
async def test_sequence_over_budget_is_dispatched_alone(line: Line) -> None:
    await line.hold()
    call = line.ask((1,), (2,) * 50, (3,))
    await until(lambda: line.queue.num_waiting == 3)
    line.release()
    assert len(await rewards(call)) == 3
    assert [(2,) * 50] in line.replicas.batches


@given(st.lists(SEQUENCES, min_size=1, max_size=8), st.integers(1, 20), st.integers(1, 3))
def test_rewards_are_in_order_and_computed_tokens_add_up(
    asked: list[list[Ids]], budget: int, num_replicas: int
) -> None:
    async def run() -> None:
        line = Line(num_replicas, budget)
        answers = await asyncio.gather(*[line.ask(*sequences) for sequences in asked])
        for sequences, answer in zip(asked, answers, strict=True):
            assert list(answer.batch.rewards) == [reward_of(sequence) for sequence in sequences]
        computed = sum(answer.batch.num_computed_tokens for answer in answers)
        assert computed == line.replicas.num_computed_tokens
        scored = [sequence for batch in line.replicas.batches for sequence in batch]
        assert sorted(scored) == sorted({s for sequences in asked for s in sequences})

    asyncio.run(run())
