"""Replicas that are lost, refuse or fail: everything is sent again, and only the guilty blamed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar

import pytest
from dispatcher_harness import (
    FINGERPRINT,
    Ids,
    Line,
    Replicas,
    reward_of,
    rewards,
    scenario,
    until,
)
from hypothesis import given
from hypothesis import strategies as st

from rm_core import NotReadyError, ScoredBatch, ScoreError
from serve.errors import ReplicaBusyError, ReplicaLostError
from serve.scheduler.dispatcher import Dispatcher
from serve.telemetry.events import NullObserver
from serve.worker.backends import BatchResult

SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), max_size=12)


@scenario
async def test_failed_batch_is_halved_until_failing_sequence_is_alone(
    line: Line,
) -> None:
    await line.hold()
    line.replicas.failure_at = lambda batch: RuntimeError("inside") if (3,) in batch else None
    call = line.ask(*[(i,) for i in range(8)])
    await until(lambda: line.queue.num_waiting == 8)
    line.release()
    found = await rewards(call)
    assert [f for f in found if isinstance(f, ScoreError)] == [found[3]]
    assert found[3].code == "scoring_failed"  # type: ignore[union-attr]
    assert "inside" not in found[3].message  # type: ignore[union-attr]
    assert found[:3] == [reward_of((i,)) for i in range(3)]
    assert found[4:] == [reward_of((i,)) for i in range(4, 8)]
    assert sum(map(len, line.replicas.batches)) == 1 + 8 + 8 + 4 + 2


@scenario
async def test_lost_batch_is_sent_to_another_replica(line: Line) -> None:
    await line.hold()
    losses = iter([ReplicaLostError.for_replica("killed", "one", "replica_lost")])
    line.replicas.failure_at = lambda batch: next(losses, None) if (1,) in batch else None
    call = line.ask((1,), (2,), (3,))
    await until(lambda: line.queue.num_waiting == 3)
    line.release()
    assert await rewards(call) == [reward_of((i,)) for i in (1, 2, 3)]
    # One at a time, so that the one to blame is found without another loss.
    assert line.replicas.batches[2:] == [[(1,)], [(2,)], [(3,)]]
    assert line.told.retries == [("replica_lost", 3)]


@scenario
async def test_sequence_that_crashes_two_replicas_is_quarantined(line: Line) -> None:
    line.replicas.num_replicas = 3
    killed: list[str] = []
    line.replicas.failure_at = killers_of((2,), killed)
    found = await rewards(line.ask((1,), (2,), (3,), (4,)))
    assert len(killed) == 2
    assert isinstance(found[1], ScoreError)
    assert found[1].code == "lost_replicas"
    assert [found[0], *found[2:]] == [reward_of((i,)) for i in (1, 3, 4)]
    assert line.told.given_up == 1
    assert await rewards(line.ask((5,)))


@scenario
async def test_loss_of_same_replica_counts_once(line: Line) -> None:
    """A dead replica that the router has not yet noticed proves nothing against a conversation."""
    losses = iter(
        [ReplicaLostError.for_replica("killed", "the one", "replica_lost") for _ in range(5)]
    )
    line.replicas.failure_at = lambda _: next(losses, None)
    assert await rewards(line.ask((1,))) == [reward_of((1,))]


@scenario
async def test_only_sequence_on_device_is_blamed_for_crash(line: Line) -> None:
    """Two replicas are killed, the second one while it has reached the third conversation."""
    losses = iter("ab")

    def kill(batch: Sequence[Ids]) -> Exception | None:
        name = next(losses, None) if len(batch) > 1 or batch == [(3,)] else None
        return name and ReplicaLostError.for_replica("killed", name, "replica_lost")  # type: ignore[return-value]

    line.replicas.failure_at = kill
    found = await rewards(line.ask(*[(i,) for i in range(1, 7)]))
    assert [isinstance(f, ScoreError) for f in found] == [False, False, True, False, False, False]
    assert line.replicas.batches[1:] == [[(1,)], [(2,)], [(3,)], [(4,)], [(5,)], [(6,)]]


@scenario
async def test_replica_lost_before_it_begins_blames_no_sequence(line: Line) -> None:
    before = iter(
        [ReplicaLostError.for_replica("killed", f"r{i}", "replica_lost") for i in range(5)]
    )
    losses = iter([ReplicaLostError.for_replica("killed", "first", "replica_lost")])
    line.replicas.failure_at = lambda _: next(losses, None)
    line.replicas.failure_before = lambda: next(before, None)
    assert await rewards(line.ask((1,), (2,))) == [reward_of((1,)), reward_of((2,))]
    assert line.told.given_up == 0


@scenario
async def test_other_sequences_are_scored_while_suspects_run(line: Line) -> None:
    line.replicas.num_replicas = 2
    losses = iter([ReplicaLostError.for_replica("killed", "one", "replica_lost")])

    def lose_one_and_hold(batch: Sequence[Ids]) -> Exception | None:
        loss = next(losses, None) if (1,) in batch else None
        if loss:
            line.replicas.go.clear()
        return loss

    line.replicas.failure_at = lose_one_and_hold
    call = line.ask(*[(i,) for i in range(6)])
    await until(lambda: bool(line.told.retries))
    other = line.ask((50,))
    await until(lambda: line.queue.num_in_flight == 2)
    assert line.replicas.batches[1:] == [[(50,)]]
    line.release()
    assert len(await rewards(call)) == 6
    assert await rewards(other) == [reward_of((50,))]


@scenario
async def test_suspects_fail_if_model_is_not_ready(line: Line) -> None:
    losses = iter([ReplicaLostError.for_replica("killed", "one", "replica_lost")])
    line.replicas.failure_at = lambda _: next(losses, None)
    line.replicas.failure_before = lambda: NotReadyError("gone")
    with pytest.raises(NotReadyError, match="gone"):
        await line.ask((1,), (2,))


@scenario
async def test_batch_of_busy_replica_is_retried(line: Line) -> None:
    answers = iter([ReplicaBusyError("full"), ReplicaBusyError("full")])
    line.replicas.failure_at = lambda _: next(answers, None)
    assert await rewards(line.ask((1,), (2,))) == [reward_of((1,)), reward_of((2,))]
    assert line.replicas.batches == [[(1,), (2,)]] * 3
    assert line.told.retries == [("overloaded", 2)] * 2


@scenario
async def test_lost_batch_of_cancelled_request_is_dropped(line: Line) -> None:
    line.replicas.go.clear()
    line.replicas.failure_at = lambda _: ReplicaLostError.for_replica(
        "killed", "one", "replica_lost"
    )
    gone = line.ask((1,))
    await until(lambda: line.queue.num_in_flight == 1)
    gone.cancel()
    await asyncio.wait([gone])
    line.release()
    await until(lambda: line.queue.num_in_flight == 0)
    await asyncio.sleep(60)  # of virtual time
    assert len(line.replicas.batches) == 1


def killers_of(bad: Ids, killed: list[str]) -> Callable[[Sequence[Ids]], Exception | None]:
    """Every replica that gets `bad` dies."""

    def kill(batch: Sequence[Ids]) -> Exception | None:
        if bad not in batch:
            return None
        killed.append(f"replica {len(killed)}")
        return ReplicaLostError.for_replica("killed", killed[-1], "replica_lost")

    return kill


@scenario
async def test_crashes_are_remembered_after_request_is_cancelled(line: Line) -> None:
    killed: list[str] = []
    line.replicas.failure_at = killers_of((2,), killed)
    line.replicas.go.clear()
    gone = line.ask((1,), (2,))
    await until(lambda: line.queue.num_in_flight == 1)
    gone.cancel()
    await asyncio.wait([gone])
    line.release()
    await until(lambda: line.queue.num_in_flight == 0)
    assert len(killed) == 1
    again = await rewards(line.ask((1,), (2,), (3,)))
    # The second loss is its own: what is under suspicion goes alone.
    assert [again[0], again[2]] == [reward_of((1,)), reward_of((3,))]
    assert again[1].code == "lost_replicas"  # type: ignore[union-attr]
    assert len(killed) == 2
    once_more = await rewards(line.ask((3,), (2,)))
    assert once_more[0] == reward_of((3,))
    assert once_more[1].code == "lost_replicas"  # type: ignore[union-attr]
    assert len(killed) == 2
    assert line.queue.queued_tokens == line.queue.num_waiting == 0


@scenario
async def test_sequence_scored_after_crash_is_no_longer_suspect(line: Line) -> None:
    losses = iter([ReplicaLostError.for_replica("killed", "one", "replica_lost")])
    line.replicas.failure_at = lambda _: next(losses, None)
    await rewards(line.ask((1,), (2,)))
    await rewards(line.ask((1,), (2,)))
    assert line.replicas.batches[-1] == [(1,), (2,)]


@scenario
async def test_batch_runs_outside_context_of_requests(line: Line) -> None:
    """Whoever hangs up takes no batch along: it runs in a context of its own."""
    name: ContextVar[str] = ContextVar("name", default="nobody's")
    seen: list[str] = []
    line.replicas.failure_at = lambda _: seen.append(name.get())
    token = name.set("the request's")
    await rewards(line.ask(*[(i,) * 20 for i in range(5)]))
    name.reset(token)
    assert seen == ["nobody's"] * 5


@scenario
async def test_cancelled_batch_is_sent_again(line: Line) -> None:
    line.replicas.go.clear()
    call = line.ask((1,), (2,))
    await until(lambda: len(line.replicas.batches) == 1)
    (task,) = line.queue._tasks
    task.cancel()
    await asyncio.wait([task])
    line.release()
    assert await rewards(call) == [reward_of((1,)), reward_of((2,))]
    assert line.replicas.batches == [[(1,), (2,)]] * 2


@scenario
async def test_replica_lost_after_last_result_blames_no_sequence(line: Line) -> None:
    losses = iter([ReplicaLostError.for_replica("killed", "one", "replica_lost")])
    line.replicas.failure_at = lambda _: next(losses, None)
    line.replicas.failure_after = lambda: ReplicaLostError.for_replica(
        "killed", "two", "replica_lost"
    )
    assert await rewards(line.ask((1,), (2,))) == [reward_of((1,)), reward_of((2,))]
    assert line.told.given_up == 0


@scenario
async def test_model_not_ready_fails_only_requests_of_its_batch(line: Line) -> None:
    await line.hold()
    line.replicas.failure_at = lambda batch: NotReadyError("gone") if (1,) * 15 in batch else None
    bad = line.ask((1,) * 15, (2,) * 15)  # one batch each
    good = line.ask((2,) * 15, (3,) * 15)
    await until(lambda: line.queue.num_waiting == 3)
    line.release()
    with pytest.raises(NotReadyError, match="gone"):
        await bad
    assert await rewards(good) == [reward_of((2,) * 15), reward_of((3,) * 15)]


@scenario
async def test_wrong_number_of_rewards_fails_batch(line: Line) -> None:
    class Wrong(Replicas):
        async def run_batch(self, sequences: Sequence[Ids], backlog_tokens: int) -> BatchResult:
            return BatchResult(ScoredBatch((1.0, 2.0), 1), 0.0, FINGERPRINT)

    queue = Dispatcher("rm", Wrong(), NullObserver())
    with queue.open_flow("a", 0) as flow:
        (only,) = (await queue.compute_rewards(flow, [(1,)])).batch.rewards
    assert isinstance(only, ScoreError)


@given(st.lists(SEQUENCES, min_size=1, max_size=6), st.lists(st.integers(0, 9), max_size=12))
def test_every_sequence_gets_result_despite_random_failures(
    asked: list[list[Ids]], fates: list[int]
) -> None:
    """Replicas are lost, refuse, or fail, in any order; then they are well."""

    async def run() -> None:
        line = Line(2, 6)
        coming = iter(fates)

        def fate(_: Sequence[Ids]) -> Exception | None:
            number = next(coming, 9)
            if number < 3:
                return ReplicaLostError.for_replica("killed", f"{number}", "replica_lost")
            return RuntimeError("once") if number == 3 else None

        line.replicas.failure_at = fate
        for sequences, answer in zip(
            asked, await asyncio.gather(*[line.ask(*s) for s in asked]), strict=True
        ):
            for sequence, reward in zip(sequences, answer.batch.rewards, strict=True):
                if isinstance(reward, ScoreError):
                    assert reward.code in ("lost_replicas", "scoring_failed")
                else:
                    assert reward == reward_of(sequence)
        assert line.queue.queued_tokens == line.queue.num_waiting == 0

    asyncio.run(run())


@scenario
async def test_retry_batches_are_dropped_once_requests_are_cancelled(line: Line) -> None:
    line.replicas.failure_at = lambda _: ReplicaBusyError("full")
    asked = line.ask((1, 2), (3,))
    await until(lambda: bool(line.replicas.batches))
    asked.cancel()
    await until(lambda: line.queue.num_in_flight == 0)
    await until(lambda: not line.queue._retry_batches)
