"""Dispatcher with replicas that are lost, busy or failing: retries and quarantine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar

import pytest
from dispatcher_harness import (
    FINGERPRINT,
    DispatcherHarness,
    FakeReplicas,
    Ids,
    reward_of,
    rewards,
    scenario,
    until,
)
from hypothesis import given
from hypothesis import strategies as st

from rm_core import BatchResult, NotReadyError, ScoreError
from serve.errors import ReplicaBusyError, ReplicaLostError
from serve.scheduler.dispatcher import Dispatcher

SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), max_size=12)


@scenario
async def test_sequences_of_failed_batch_are_scored_alone(
    harness: DispatcherHarness,
) -> None:
    await harness.hold()
    harness.replicas.failure_at = lambda batch: RuntimeError("inside") if (3,) in batch else None
    request = harness.submit(*[(i,) for i in range(8)])
    await until(lambda: harness.dispatcher.num_waiting == 8)
    harness.release()
    results = await rewards(request)
    assert [r for r in results if isinstance(r, ScoreError)] == [results[3]]
    assert results[3].code == "scoring_failed"  # type: ignore[union-attr]
    assert "inside" not in results[3].message  # type: ignore[union-attr]
    assert results[:3] == [reward_of((i,)) for i in range(3)]
    assert results[4:] == [reward_of((i,)) for i in range(4, 8)]
    assert [len(batch) for batch in harness.replicas.batches] == [1, 8, *[1] * 8]


@scenario
async def test_lost_batch_is_sent_to_another_replica(harness: DispatcherHarness) -> None:
    await harness.hold()
    losses = iter([ReplicaLostError("killed", replica="one")])
    harness.replicas.failure_at = lambda batch: next(losses, None) if (1,) in batch else None
    request = harness.submit((1,), (2,), (3,))
    await until(lambda: harness.dispatcher.num_waiting == 3)
    harness.release()
    assert await rewards(request) == [reward_of((i,)) for i in (1, 2, 3)]
    # One at a time, so that the cause is found without another loss.
    assert harness.replicas.batches[2:] == [[(1,)], [(2,)], [(3,)]]
    assert harness.metrics.retries == [("replica_lost", 3)]


@scenario
async def test_sequence_that_crashes_two_replicas_is_quarantined(
    harness: DispatcherHarness,
) -> None:
    harness.replicas.num_replicas = 3
    killed: list[str] = []
    harness.replicas.failure_at = crash_on((2,), killed)
    results = await rewards(harness.submit((1,), (2,), (3,), (4,)))
    assert len(killed) == 2
    assert isinstance(results[1], ScoreError)
    assert results[1].code == "lost_replicas"
    assert [results[0], *results[2:]] == [reward_of((i,)) for i in (1, 3, 4)]
    assert harness.metrics.num_abandoned == 1
    assert await rewards(harness.submit((5,)))


@scenario
async def test_loss_of_same_replica_counts_once(harness: DispatcherHarness) -> None:
    """A dead replica that the router has not yet noticed says nothing about a conversation."""
    losses = iter([ReplicaLostError("killed", replica="the one") for _ in range(5)])
    harness.replicas.failure_at = lambda _: next(losses, None)
    assert await rewards(harness.submit((1,))) == [reward_of((1,))]


@scenario
async def test_only_sequence_on_device_is_blamed_for_crash(harness: DispatcherHarness) -> None:
    """Two replicas are killed, the second one while the third conversation is on its device."""
    losses = iter("ab")

    def kill(batch: Sequence[Ids]) -> Exception | None:
        name = next(losses, None) if len(batch) > 1 or batch == [(3,)] else None
        return name and ReplicaLostError("killed", replica=name)  # type: ignore[return-value]

    harness.replicas.failure_at = kill
    results = await rewards(harness.submit(*[(i,) for i in range(1, 7)]))
    assert [isinstance(r, ScoreError) for r in results] == [False, False, True, False, False, False]
    assert harness.replicas.batches[1:] == [[(1,)], [(2,)], [(3,)], [(4,)], [(5,)], [(6,)]]


@scenario
async def test_replica_lost_before_it_begins_blames_no_sequence(harness: DispatcherHarness) -> None:
    before = iter([ReplicaLostError("killed", replica=f"r{i}") for i in range(5)])
    losses = iter([ReplicaLostError("killed", replica="first")])
    harness.replicas.failure_at = lambda _: next(losses, None)
    harness.replicas.failure_before = lambda: next(before, None)
    assert await rewards(harness.submit((1,), (2,))) == [reward_of((1,)), reward_of((2,))]
    assert harness.metrics.num_abandoned == 0


@scenario
async def test_other_sequences_are_scored_while_suspects_run(harness: DispatcherHarness) -> None:
    harness.replicas.num_replicas = 2
    losses = iter([ReplicaLostError("killed", replica="one")])

    def lose_one_and_hold(batch: Sequence[Ids]) -> Exception | None:
        loss = next(losses, None) if (1,) in batch else None
        if loss:
            harness.replicas.go.clear()
        return loss

    harness.replicas.failure_at = lose_one_and_hold
    request = harness.submit(*[(i,) for i in range(6)])
    await until(lambda: bool(harness.metrics.retries))
    other = harness.submit((50,))
    await until(lambda: harness.dispatcher.num_in_flight == 2)
    assert harness.replicas.batches[1:] == [[(50,)]]
    harness.release()
    assert len(await rewards(request)) == 6
    assert await rewards(other) == [reward_of((50,))]


@scenario
async def test_suspects_fail_if_model_is_not_ready(harness: DispatcherHarness) -> None:
    losses = iter([ReplicaLostError("killed", replica="one")])
    harness.replicas.failure_at = lambda _: next(losses, None)
    harness.replicas.failure_before = lambda: NotReadyError("gone")
    with pytest.raises(NotReadyError, match="gone"):
        await harness.submit((1,), (2,))


@scenario
async def test_batch_of_busy_replica_is_retried(harness: DispatcherHarness) -> None:
    answers = iter([ReplicaBusyError("full"), ReplicaBusyError("full")])
    harness.replicas.failure_at = lambda _: next(answers, None)
    assert await rewards(harness.submit((1,), (2,))) == [reward_of((1,)), reward_of((2,))]
    assert harness.replicas.batches == [[(1,), (2,)]] * 3
    assert harness.metrics.retries == [("overloaded", 2)] * 2


@scenario
async def test_lost_batch_of_cancelled_request_is_dropped(harness: DispatcherHarness) -> None:
    harness.replicas.go.clear()
    harness.replicas.failure_at = lambda _: ReplicaLostError("killed", replica="one")
    gone = harness.submit((1,))
    await until(lambda: harness.dispatcher.num_in_flight == 1)
    gone.cancel()
    await asyncio.wait([gone])
    harness.release()
    await until(lambda: harness.dispatcher.num_in_flight == 0)
    await asyncio.sleep(60)  # of virtual time
    assert len(harness.replicas.batches) == 1


def crash_on(bad: Ids, killed: list[str]) -> Callable[[Sequence[Ids]], Exception | None]:
    """Return a `failure_at` with which every replica that gets `bad` crashes."""

    def kill(batch: Sequence[Ids]) -> Exception | None:
        if bad not in batch:
            return None
        killed.append(f"replica {len(killed)}")
        return ReplicaLostError("killed", replica=killed[-1])

    return kill


@scenario
async def test_crashes_are_remembered_after_request_is_cancelled(
    harness: DispatcherHarness,
) -> None:
    killed: list[str] = []
    harness.replicas.failure_at = crash_on((2,), killed)
    harness.replicas.go.clear()
    gone = harness.submit((1,), (2,))
    await until(lambda: harness.dispatcher.num_in_flight == 1)
    gone.cancel()
    await asyncio.wait([gone])
    harness.release()
    await until(lambda: harness.dispatcher.num_in_flight == 0)
    assert len(killed) == 1
    again = await rewards(harness.submit((1,), (2,), (3,)))
    # The second crash is its own: suspects are scored one at a time.
    assert [again[0], again[2]] == [reward_of((1,)), reward_of((3,))]
    assert again[1].code == "lost_replicas"  # type: ignore[union-attr]
    assert len(killed) == 2
    third = await rewards(harness.submit((3,), (2,)))
    assert third[0] == reward_of((3,))
    assert third[1].code == "lost_replicas"  # type: ignore[union-attr]
    assert len(killed) == 2
    assert harness.dispatcher.queued_tokens == harness.dispatcher.num_waiting == 0


@scenario
async def test_sequence_scored_after_crash_is_no_longer_suspect(harness: DispatcherHarness) -> None:
    losses = iter([ReplicaLostError("killed", replica="one")])
    harness.replicas.failure_at = lambda _: next(losses, None)
    await rewards(harness.submit((1,), (2,)))
    await rewards(harness.submit((1,), (2,)))
    assert harness.replicas.batches[-1] == [(1,), (2,)]


@scenario
async def test_batch_runs_outside_context_of_requests(harness: DispatcherHarness) -> None:
    """A client that disconnects cancels no batch of others."""
    name: ContextVar[str] = ContextVar("name", default="nobody's")
    seen: list[str] = []
    harness.replicas.failure_at = lambda _: seen.append(name.get())
    token = name.set("the request's")
    await rewards(harness.submit(*[(i,) * 20 for i in range(5)]))
    name.reset(token)
    assert seen == ["nobody's"] * 5


@scenario
async def test_cancelled_batch_is_sent_again(harness: DispatcherHarness) -> None:
    harness.replicas.go.clear()
    request = harness.submit((1,), (2,))
    await until(lambda: len(harness.replicas.batches) == 1)
    (task,) = harness.dispatcher._tasks
    task.cancel()
    await asyncio.wait([task])
    harness.release()
    assert await rewards(request) == [reward_of((1,)), reward_of((2,))]
    assert harness.replicas.batches == [[(1,), (2,)], [(1,)], [(2,)]]


@scenario
async def test_replica_lost_after_last_result_blames_no_sequence(
    harness: DispatcherHarness,
) -> None:
    losses = iter([ReplicaLostError("killed", replica="one")])
    harness.replicas.failure_at = lambda _: next(losses, None)
    harness.replicas.failure_after = lambda: ReplicaLostError("killed", replica="two")
    assert await rewards(harness.submit((1,), (2,))) == [reward_of((1,)), reward_of((2,))]
    assert harness.metrics.num_abandoned == 0


@scenario
async def test_model_not_ready_fails_only_requests_of_its_batch(harness: DispatcherHarness) -> None:
    await harness.hold()
    harness.replicas.failure_at = lambda batch: (
        NotReadyError("gone") if (1,) * 15 in batch else None
    )
    bad = harness.submit((1,) * 15, (2,) * 15)  # one batch each
    good = harness.submit((2,) * 15, (3,) * 15)
    await until(lambda: harness.dispatcher.num_waiting == 3)
    harness.release()
    with pytest.raises(NotReadyError, match="gone"):
        await bad
    assert await rewards(good) == [reward_of((2,) * 15), reward_of((3,) * 15)]


@scenario
async def test_wrong_number_of_rewards_fails_batch(harness: DispatcherHarness) -> None:
    class Wrong(FakeReplicas):
        async def run_batch(self, sequences: Sequence[Ids], backlog_tokens: int) -> BatchResult:
            return BatchResult((1.0, 2.0), 1, 0.0, FINGERPRINT)

    queue = Dispatcher("rm", Wrong())
    with queue.open_flow("a", 0) as flow:
        (only,) = await queue.compute_outputs(flow, [(1,)])
    assert isinstance(only, ScoreError)


@given(st.lists(SEQUENCES, min_size=1, max_size=6), st.lists(st.integers(0, 9), max_size=12))
def test_every_sequence_gets_result_despite_random_failures(
    requests: list[list[Ids]], fates: list[int]
) -> None:
    """Replicas are lost or fail in any order; then they are healthy."""

    async def run() -> None:
        harness = DispatcherHarness(2, 6)
        coming = iter(fates)

        def fate(_: Sequence[Ids]) -> Exception | None:
            number = next(coming, 9)
            if number < 3:
                return ReplicaLostError("killed", replica=f"{number}")
            return RuntimeError("once") if number == 3 else None

        harness.replicas.failure_at = fate
        for sequences, answer in zip(
            requests, await asyncio.gather(*[harness.submit(*s) for s in requests]), strict=True
        ):
            for sequence, reward in zip(sequences, answer.rewards, strict=True):
                if isinstance(reward, ScoreError):
                    assert reward.code in ("lost_replicas", "scoring_failed")
                else:
                    assert reward == reward_of(sequence)
        assert harness.dispatcher.queued_tokens == harness.dispatcher.num_waiting == 0

    asyncio.run(run())


@scenario
async def test_busy_batch_is_not_sent_again_once_requests_are_cancelled(
    harness: DispatcherHarness,
) -> None:
    harness.replicas.failure_at = lambda _: ReplicaBusyError("full")
    request = harness.submit((1, 2), (3,))
    await until(lambda: bool(harness.replicas.batches))
    request.cancel()
    await until(lambda: harness.dispatcher.num_in_flight == 0)
    num_batches = len(harness.replicas.batches)
    await asyncio.sleep(60)  # of virtual time
    assert len(harness.replicas.batches) == num_batches
