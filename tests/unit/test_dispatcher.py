"""Dispatcher: shared batches, order of requests, bounded work for each batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from dispatcher_harness import (
    BUDGET,
    DispatcherHarness,
    Ids,
    reward_of,
    rewards,
    scenario,
    until,
)
from hypothesis import given
from hypothesis import strategies as st

from rm_core import pack
from serve.errors import ModelAsleepError, ReplicaBusyError

SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), max_size=12)


@scenario
async def test_pending_sequences_share_batch_and_equal_ones_run_once(
    harness: DispatcherHarness,
) -> None:
    await harness.hold()
    requests = [
        harness.submit((1, 1, 1), (2, 2)),
        harness.submit((2, 2)),
        harness.submit((1, 1, 2), (2, 2), (1, 1, 2)),
    ]
    await until(lambda: harness.dispatcher.num_waiting == 3)
    assert harness.dispatcher.queued_tokens == 8
    harness.release()
    assert await rewards(requests[0]) == [reward_of((1, 1, 1)), reward_of((2, 2))]
    assert await rewards(requests[1]) == [reward_of((2, 2))]
    assert await rewards(requests[2]) == [reward_of(s) for s in ((1, 1, 2), (2, 2), (1, 1, 2))]
    assert harness.replicas.batches == [[(99,)], [(1, 1, 1), (1, 1, 2), (2, 2)]]
    assert harness.replicas.backlogs == [0, 0]
    result, queue_durations_s = harness.metrics.batches[1]
    assert (len(result.outputs), result.num_computed_tokens) == (3, 6)
    assert len(queue_durations_s) == 5


@scenario
async def test_sequence_in_flight_is_not_scored_again(harness: DispatcherHarness) -> None:
    first = await harness.hold()
    second = harness.submit((99,), (5,))
    await until(lambda: harness.dispatcher.num_waiting == 1)
    harness.release()
    assert await rewards(first) == [reward_of((99,))]
    assert await rewards(second) == [reward_of((99,)), reward_of((5,))]
    assert harness.replicas.batches == [[(99,)], [(5,)]]


@scenario
async def test_replica_gets_its_next_batch_before_rewards_are_answered(
    harness: DispatcherHarness,
) -> None:
    """Answering takes the event loop milliseconds, for which the device would be idle."""
    requests = [await harness.hold(), harness.submit((5,))]
    await until(lambda: harness.dispatcher.num_waiting == 1)
    num_batches: list[int] = []
    requests[0].add_done_callback(lambda _: num_batches.append(len(harness.replicas.batches)))
    harness.release()
    await asyncio.gather(*requests)
    assert num_batches == [2]


@scenario
async def test_later_sequences_join_batch_of_their_prompt(harness: DispatcherHarness) -> None:
    await harness.hold()
    prompt, other = (7,) * 12, (3,) * 12
    requests = [
        harness.submit((*prompt, 1)),
        harness.submit((*other, 1), (*other, 2)),
        harness.submit((*prompt, 2), (*prompt, 3)),
    ]
    await until(lambda: harness.dispatcher.num_waiting == 5)
    harness.release()
    await asyncio.gather(*requests)
    assert [{sequence[0] for sequence in batch} for batch in harness.replicas.batches] == [
        {99},
        {7},
        {3},
    ]


@scenario
async def test_large_request_delays_small_one_by_one_batch_at_most(
    harness: DispatcherHarness,
) -> None:
    await harness.hold()
    big = harness.submit(*[(i, i, i, i, i) for i in range(400)])
    await until(lambda: harness.dispatcher.num_waiting == 400)

    num_held = iter([1])

    def hold_after_some(_: Sequence[Ids]) -> None:
        if len(harness.replicas.batches) > 6 and next(num_held, None):
            harness.replicas.go.clear()

    harness.replicas.failure_at = hold_after_some
    harness.release()
    await until(lambda: not harness.replicas.go.is_set() and harness.replicas.running == 2)
    num_waiting, sent = harness.dispatcher.num_waiting, len(harness.replicas.batches)
    small = harness.submit((7, 7, 8))
    await until(lambda: harness.dispatcher.num_waiting == num_waiting + 1)
    harness.release()
    await rewards(small)
    assert [(7, 7, 8) in batch for batch in harness.replicas.batches].index(True) <= sent
    assert len(await rewards(big)) == 400


@scenario
async def test_large_request_fills_batch_of_small_one_to_half(harness: DispatcherHarness) -> None:
    await harness.hold()
    big = harness.submit(*[(i, i, i, i, i) for i in range(20)])
    small = harness.submit((7, 7, 8))
    await until(lambda: harness.dispatcher.num_waiting == 21)
    harness.release()
    await asyncio.gather(big, small)
    first, second = harness.replicas.batches[1:3]
    assert (7, 7, 8) in first
    assert pack(first, 10**6).num_tokens <= BUDGET / 2
    assert pack(second, 10**6).num_tokens == BUDGET


@scenario
async def test_lower_priority_value_is_dispatched_first(harness: DispatcherHarness) -> None:
    await harness.hold()
    normal = harness.submit(*[(i,) * 20 for i in range(5)])
    urgent = harness.submit(*[(10 + i,) * 20 for i in range(3)], priority=-1)
    await until(lambda: harness.dispatcher.num_waiting == 8)
    harness.release()
    await asyncio.gather(normal, urgent)
    order = [batch[0][0] for batch in harness.replicas.batches[1:]]
    assert order == [10, 11, 12, 0, 1, 2, 3, 4]


@scenario
async def test_forming_batch_looks_at_bounded_part_of_queue(harness: DispatcherHarness) -> None:
    await harness.hold()
    num_peeked: list[int] = []
    peek = harness.dispatcher._pool.peek

    def recording_peek(num_tokens: int, **options: Any) -> Any:
        sequences = peek(num_tokens, **options)
        num_peeked.append(sum(map(len, sequences)))
        return sequences

    harness.dispatcher._pool.peek = recording_peek  # type: ignore[method-assign]
    request = harness.submit(*[(i,) * 5 for i in range(2000)])
    await until(lambda: harness.dispatcher.num_waiting == 2000)
    harness.release()
    assert len(await rewards(request)) == 2000
    assert max(num_peeked) <= 5 * BUDGET
    assert len(harness.replicas.batches) == 1 + 2000 * 5 / BUDGET
    assert harness.replicas.backlogs[1] >= 2000 * 5 - 2 * BUDGET
    assert harness.replicas.max_running <= 2
    assert harness.replicas.backlogs[-1] == 0


@scenario
async def test_sequences_of_cancelled_request_are_not_scored(harness: DispatcherHarness) -> None:
    first = await harness.hold()
    gone = harness.submit((1,), (2,))
    stays = harness.submit((2,), (3,))
    await until(lambda: harness.dispatcher.num_waiting == 3)
    gone.cancel()
    await until(lambda: harness.dispatcher.num_waiting == 2)
    harness.release()
    answer = await stays
    assert answer.rewards == [reward_of((2,)), reward_of((3,))]
    assert answer.flow.num_computed_tokens == 2  # including the share of the cancelled request
    assert harness.replicas.batches[1:] == [[(2,), (3,)]]
    assert await rewards(first)


@scenario
async def test_cancelled_request_in_running_batch_does_not_affect_others(
    harness: DispatcherHarness,
) -> None:
    harness.replicas.go.clear()
    gone, stays = harness.submit((1,)), harness.submit((2,))
    await until(lambda: harness.dispatcher.num_in_flight == 1)
    gone.cancel()
    await asyncio.wait([gone])
    harness.release()
    assert await rewards(stays) == [reward_of((2,))]
    assert await rewards(harness.submit((1,))) == [reward_of((1,))]


@scenario
async def test_every_replica_gets_one_batch(harness: DispatcherHarness) -> None:
    harness.replicas.num_replicas = 3
    harness.replicas.go.clear()
    request = harness.submit(*[(i,) * 20 for i in range(9)])
    await until(lambda: harness.dispatcher.num_in_flight == 3)
    await asyncio.sleep(
        60
    )  # of virtual time: no replica gets a second batch, however long the first takes
    assert harness.replicas.max_running == 3
    harness.release()
    assert len(await rewards(request)) == 9


@scenario
async def test_new_replica_gets_batch_with_next_request(harness: DispatcherHarness) -> None:
    await harness.hold()
    request = harness.submit(*[(i,) * 20 for i in range(9)])
    await until(lambda: harness.dispatcher.num_waiting == 9)
    harness.replicas.num_replicas = 2
    another = harness.submit((4, 4))
    await until(lambda: harness.dispatcher.num_in_flight == 2)
    harness.release()
    await asyncio.gather(request, another)


@scenario
async def test_request_without_sequences_returns_at_once(harness: DispatcherHarness) -> None:
    answer = await harness.submit()
    assert answer.rewards == []
    assert answer.flow.num_computed_tokens == 0
    assert answer.flow.fingerprints == set()
    assert harness.replicas.batches == []


@scenario
async def test_sequence_over_budget_is_dispatched_alone(harness: DispatcherHarness) -> None:
    await harness.hold()
    request = harness.submit((1,), (2,) * 50, (3,))
    await until(lambda: harness.dispatcher.num_waiting == 3)
    harness.release()
    assert len(await rewards(request)) == 3
    assert [(2,) * 50] in harness.replicas.batches


@given(st.lists(SEQUENCES, min_size=1, max_size=8), st.integers(1, 20), st.integers(1, 3))
def test_rewards_are_in_order_and_computed_tokens_add_up(
    requests: list[list[Ids]], budget: int, num_replicas: int
) -> None:
    async def run() -> None:
        harness = DispatcherHarness(num_replicas, budget)
        answers = await asyncio.gather(*[harness.submit(*sequences) for sequences in requests])
        for sequences, answer in zip(requests, answers, strict=True):
            assert list(answer.rewards) == [reward_of(sequence) for sequence in sequences]
        computed = sum(answer.flow.num_computed_tokens for answer in answers)
        assert computed == harness.replicas.num_computed_tokens
        scored = [sequence for batch in harness.replicas.batches for sequence in batch]
        assert sorted(scored) == sorted({s for sequences in requests for s in sequences})

    asyncio.run(run())


@scenario
async def test_paused_dispatcher_keeps_requests(harness: DispatcherHarness) -> None:
    """Also one whose batch the replicas, which sleep already, have refused."""
    harness.dispatcher.pause()
    waiting = harness.submit((1,))
    await asyncio.sleep(100)
    assert harness.replicas.batches == []
    harness.dispatcher.resume()
    assert await rewards(waiting) == [reward_of((1,))]
    first = await harness.hold()
    harness.replicas.failure_at = lambda _: ReplicaBusyError("asleep")
    harness.dispatcher.pause()
    harness.release()
    await until(lambda: harness.dispatcher.num_in_flight == 0)
    assert not first.done()
    harness.replicas.failure_at = lambda _: None
    harness.dispatcher.resume()
    assert await rewards(first) == [reward_of((99,))]


@scenario
async def test_paused_dispatcher_refuses_requests(harness: DispatcherHarness) -> None:
    """All that were pending, come later, or were refused by replicas that sleep already."""
    first = await harness.hold()
    pending = harness.submit((99,), (1,), client="b")
    await until(lambda: harness.dispatcher.num_waiting == 1)
    harness.dispatcher.pause(ModelAsleepError("asleep"))
    harness.replicas.failure_at = lambda _: ReplicaBusyError("asleep")
    harness.release()
    for request in (first, pending, harness.submit((2,))):
        with pytest.raises(ModelAsleepError):
            await request
    assert harness.dispatcher.queued_tokens == 0
    assert not harness.dispatcher.tokens_by_client
    harness.replicas.failure_at = lambda _: None
    harness.dispatcher.resume()
    assert await rewards(harness.submit((3,))) == [reward_of((3,))]
