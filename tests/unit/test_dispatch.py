"""The queue of a model: shares batches, keeps turns, sends again what was lost, loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_core import Fingerprint, NotReadyError, ScoredBatch, ScoreError, pack
from serve.backends import Answer, ReplicaBusyError, ReplicaLostError
from serve.queue.dispatch import Dispatcher
from serve.queue.observer import BatchReport, Nobody
from serve.queue.waiting import Computed

Ids = tuple[int, ...]
SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple), max_size=12)
FINGERPRINT = Fingerprint("r", "t", "float32", "eager")
BUDGET = 20


def reward_of(sequence: Ids) -> float:
    return float(hash(sequence))


class Replicas:
    """Records the batches it is given; each one waits while they are held."""

    def __init__(self, num_replicas: int = 1) -> None:
        self.num_replicas = num_replicas
        self.batches: list[list[Ids]] = []
        self.backlogs: list[int] = []
        self.num_computed_tokens = 0
        self.most_at_once = 0
        self.failure_at: Callable[[Sequence[Ids]], Exception | None] = lambda _: None
        self.failure_after: Callable[[], Exception | None] = lambda: None
        self.failure_before: Callable[[], Exception | None] = lambda: None
        self.go = asyncio.Event()
        self.go.set()
        self._running = 0

    async def score(self, sequences: Sequence[Ids], backlog_tokens: int) -> Answer:
        self.batches.append(list(sequences))
        self.backlogs.append(backlog_tokens)
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        try:
            await self.go.wait()
            await asyncio.sleep(0)
        finally:
            self._running -= 1
        if failure := self.failure_at(sequences):
            raise failure
        num_tokens = pack(sequences, 10**6).num_tokens
        self.num_computed_tokens += num_tokens
        return Answer(ScoredBatch(tuple(map(reward_of, sequences)), num_tokens), 0.0, FINGERPRINT)

    async def score_each(
        self, sequences: Sequence[Ids], backlog_tokens: int
    ) -> AsyncIterator[Answer | None]:
        await self.go.wait()
        if failure := self.failure_before():
            raise failure
        yield None
        for sequence in sequences:
            yield await self.score([sequence], backlog_tokens)
        if failure := self.failure_after():
            raise failure

    async def describe(self) -> dict[str, Any]:
        return {"max_batch_tokens": BUDGET}

    async def refresh(self) -> None:
        return


class Counting(Nobody):
    def __init__(self) -> None:
        self.reports: list[BatchReport] = []
        self.retries: list[tuple[str, int]] = []
        self.given_up = 0

    def batch(self, report: BatchReport) -> None:
        self.reports.append(report)

    def retry(self, model: str, reason: str, num_sequences: int) -> None:
        self.retries.append((reason, num_sequences))

    def gave_up(self, model: str, num_sequences: int) -> None:
        self.given_up += num_sequences


class Line:
    """A queue before replicas, and what it told."""

    def __init__(self, num_replicas: int = 1, budget: int = BUDGET) -> None:
        self.replicas = Replicas(num_replicas)
        self.told = Counting()
        self.queue = Dispatcher("rm", self.replicas, self.told)
        self.queue.max_batch_tokens = budget

    def ask(self, *sequences: Ids, client: str = "a", priority: int = 0) -> asyncio.Task[Computed]:
        return asyncio.ensure_future(self._ask(sequences, client, priority))

    async def _ask(self, sequences: Sequence[Ids], client: str, priority: int) -> Computed:
        with self.queue.flow(client, priority) as flow:
            return await self.queue.score(flow, sequences)

    async def hold(self) -> asyncio.Task[Computed]:
        """Every replica stands at a batch of one; what is asked now waits together."""
        self.replicas.go.clear()
        first = self.ask((99,))
        await until(lambda: len(self.replicas.batches) == 1)
        return first

    def release(self) -> None:
        self.replicas.go.set()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def rewards(answer: Awaitable[Computed]) -> list[float | ScoreError]:
    async with asyncio.timeout(10):
        return list((await answer).batch.rewards)


def scenario(test: Callable[[Line], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test with a queue of its own, on an event loop of its own."""

    def run() -> None:
        async def on_a_loop() -> None:
            line = Line()
            await test(line)
            await until(lambda: line.queue.num_in_flight == 0)
            assert line.queue.queued_tokens == line.queue.num_waiting == 0

        asyncio.run(on_a_loop())

    run.__doc__ = test.__doc__
    return run


@scenario
async def test_what_waits_goes_together_and_equal_sequences_once(line: Line) -> None:
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
    assert len(report.waited_s) == 5


@scenario
async def test_a_sequence_that_is_being_scored_is_not_scored_again(line: Line) -> None:
    first = await line.hold()
    second = line.ask((99,), (5,))
    await until(lambda: line.queue.num_waiting == 1)
    line.release()
    assert await rewards(first) == [reward_of((99,))]
    assert await rewards(second) == [reward_of((99,)), reward_of((5,))]
    assert line.replicas.batches == [[(99,)], [(5,)]]


@scenario
async def test_what_arrives_later_joins_its_prompt(line: Line) -> None:
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
async def test_a_large_request_holds_a_small_one_back_for_one_batch(line: Line) -> None:
    await line.hold()
    big = line.ask(*[(i, i, i, i, i) for i in range(400)])
    await until(lambda: line.queue.num_waiting == 400)

    num_held = iter([1])

    def hold_after_some(_: Sequence[Ids]) -> None:
        if len(line.replicas.batches) > 6 and next(num_held, None):
            line.replicas.go.clear()

    line.replicas.failure_at = hold_after_some
    line.release()
    await until(lambda: not line.replicas.go.is_set() and line.queue.num_in_flight == 2)
    small = line.ask((7, 7, 8))
    await asyncio.sleep(0.05)
    sent = len(line.replicas.batches)
    line.release()
    await rewards(small)
    assert [(7, 7, 8) in batch for batch in line.replicas.batches].index(True) <= sent
    assert len(await rewards(big)) == 400


@scenario
async def test_what_a_large_request_adds_to_a_small_one_is_half_a_batch(line: Line) -> None:
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
async def test_priority_goes_first(line: Line) -> None:
    await line.hold()
    normal = line.ask(*[(i,) * 20 for i in range(5)])
    urgent = line.ask(*[(10 + i,) * 20 for i in range(3)], priority=-1)
    await until(lambda: line.queue.num_waiting == 8)
    line.release()
    await asyncio.gather(normal, urgent)
    order = [batch[0][0] for batch in line.replicas.batches[1:]]
    assert order == [10, 11, 12, 0, 1, 2, 3, 4]


@scenario
async def test_a_large_request_is_not_looked_at_as_a_whole_for_each_batch(line: Line) -> None:
    await line.hold()
    looked_at: list[int] = []
    next_ones = line.queue._pool.next_ones

    def watched(num_tokens: int, **without: Any) -> Any:
        found = next_ones(num_tokens, **without)
        looked_at.append(sum(map(len, found)))
        return found

    line.queue._pool.next_ones = watched  # type: ignore[method-assign]
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
async def test_what_nobody_waits_for_is_not_scored(line: Line) -> None:
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
async def test_a_call_given_up_while_its_batch_runs_leaves_the_others_alone(line: Line) -> None:
    line.replicas.go.clear()
    gone, stays = line.ask((1,)), line.ask((2,))
    await until(lambda: line.queue.num_in_flight == 1)
    gone.cancel()
    await asyncio.wait([gone])
    line.release()
    assert await rewards(stays) == [reward_of((2,))]
    assert await rewards(line.ask((1,))) == [reward_of((1,))]


@scenario
async def test_what_fails_together_is_tried_in_halves_until_the_bad_one_stands_alone(
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
async def test_a_lost_batch_goes_to_another_replica(line: Line) -> None:
    await line.hold()
    losses = iter([ReplicaLostError.of("killed", "one", "replica_lost")])
    line.replicas.failure_at = lambda batch: next(losses, None) if (1,) in batch else None
    call = line.ask((1,), (2,), (3,))
    await until(lambda: line.queue.num_waiting == 3)
    line.release()
    assert await rewards(call) == [reward_of((i,)) for i in (1, 2, 3)]
    # One at a time, so that the one to blame is found without another loss.
    assert line.replicas.batches[2:] == [[(1,)], [(2,)], [(3,)]]
    assert line.told.retries == [("replica_lost", 3)]


@scenario
async def test_what_kills_its_replica_twice_does_not_take_a_third(line: Line) -> None:
    line.replicas.num_replicas = 3
    killed: list[str] = []

    def kill(batch: Sequence[Ids]) -> Exception | None:
        if (2,) not in batch:
            return None
        killed.append(f"replica {len(killed)}")
        return ReplicaLostError.of("killed", killed[-1], "replica_lost")

    line.replicas.failure_at = kill
    found = await rewards(line.ask((1,), (2,), (3,), (4,)))
    assert len(killed) == 2
    assert isinstance(found[1], ScoreError)
    assert found[1].code == "lost_replicas"
    assert [found[0], *found[2:]] == [reward_of((i,)) for i in (1, 3, 4)]
    assert line.told.given_up == 1
    assert await rewards(line.ask((5,)))


@scenario
async def test_losing_the_same_replica_twice_counts_once(line: Line) -> None:
    """A dead replica that the router has not yet noticed proves nothing against a conversation."""
    losses = iter([ReplicaLostError.of("killed", "the one", "replica_lost") for _ in range(5)])
    line.replicas.failure_at = lambda _: next(losses, None)
    assert await rewards(line.ask((1,))) == [reward_of((1,))]


@scenario
async def test_only_the_one_on_the_device_is_to_blame(line: Line) -> None:
    """Two replicas are killed, the second one while it has reached the third conversation."""
    losses = iter("ab")

    def kill(batch: Sequence[Ids]) -> Exception | None:
        name = next(losses, None) if len(batch) > 1 or batch == [(3,)] else None
        return name and ReplicaLostError.of("killed", name, "replica_lost")  # type: ignore[return-value]

    line.replicas.failure_at = kill
    found = await rewards(line.ask(*[(i,) for i in range(1, 7)]))
    assert [isinstance(f, ScoreError) for f in found] == [False, False, True, False, False, False]
    assert line.replicas.batches[1:] == [[(1,)], [(2,)], [(3,)], [(4,)], [(5,)], [(6,)]]


@scenario
async def test_a_replica_lost_before_it_begins_proves_nothing(line: Line) -> None:
    before = iter([ReplicaLostError.of("killed", f"r{i}", "replica_lost") for i in range(5)])
    losses = iter([ReplicaLostError.of("killed", "first", "replica_lost")])
    line.replicas.failure_at = lambda _: next(losses, None)
    line.replicas.failure_before = lambda: next(before, None)
    assert await rewards(line.ask((1,), (2,))) == [reward_of((1,)), reward_of((2,))]
    assert line.told.given_up == 0


@scenario
async def test_others_go_on_while_suspects_are_tried(line: Line) -> None:
    line.replicas.num_replicas = 2
    losses = iter([ReplicaLostError.of("killed", "one", "replica_lost")])

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
async def test_suspects_of_a_model_that_will_not_answer_are_refused(line: Line) -> None:
    losses = iter([ReplicaLostError.of("killed", "one", "replica_lost")])
    line.replicas.failure_at = lambda _: next(losses, None)
    line.replicas.failure_before = lambda: NotReadyError("gone")
    with pytest.raises(NotReadyError, match="gone"):
        await line.ask((1,), (2,))


@scenario
async def test_a_busy_replica_is_asked_again(line: Line) -> None:
    answers = iter([ReplicaBusyError("full"), ReplicaBusyError("full")])
    line.replicas.failure_at = lambda _: next(answers, None)
    assert await rewards(line.ask((1,), (2,))) == [reward_of((1,)), reward_of((2,))]
    assert line.replicas.batches == [[(1,), (2,)]] * 3
    assert line.told.retries == [("overloaded", 2)] * 2


@scenario
async def test_a_lost_call_that_nobody_waits_for_is_dropped(line: Line) -> None:
    line.replicas.go.clear()
    line.replicas.failure_at = lambda _: ReplicaLostError.of("killed", "one", "replica_lost")
    gone = line.ask((1,))
    await until(lambda: line.queue.num_in_flight == 1)
    gone.cancel()
    await asyncio.wait([gone])
    line.release()
    await until(lambda: line.queue.num_in_flight == 0)
    await asyncio.sleep(0.01)
    assert len(line.replicas.batches) == 1


@scenario
async def test_a_batch_belongs_to_no_request(line: Line) -> None:
    """Whoever hangs up takes no batch along: it runs in a context of its own."""
    name: ContextVar[str] = ContextVar("name", default="nobody's")
    seen: list[str] = []
    line.replicas.failure_at = lambda _: seen.append(name.get())
    token = name.set("the request's")
    await rewards(line.ask(*[(i,) * 20 for i in range(5)]))
    name.reset(token)
    assert seen == ["nobody's"] * 5


@scenario
async def test_a_batch_that_is_cancelled_is_sent_again(line: Line) -> None:
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
async def test_a_replica_lost_behind_its_last_answer_costs_nothing(line: Line) -> None:
    losses = iter([ReplicaLostError.of("killed", "one", "replica_lost")])
    line.replicas.failure_at = lambda _: next(losses, None)
    line.replicas.failure_after = lambda: ReplicaLostError.of("killed", "two", "replica_lost")
    assert await rewards(line.ask((1,), (2,))) == [reward_of((1,)), reward_of((2,))]
    assert line.told.given_up == 0


@scenario
async def test_a_model_that_will_not_answer_ends_the_requests_of_the_batch(line: Line) -> None:
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
async def test_every_replica_gets_a_batch(line: Line) -> None:
    line.replicas.num_replicas = 3
    line.replicas.go.clear()
    call = line.ask(*[(i,) * 20 for i in range(9)])
    await until(lambda: line.queue.num_in_flight == 3)
    await asyncio.sleep(0.02)
    assert line.replicas.most_at_once == 3
    line.release()
    assert len(await rewards(call)) == 9


@scenario
async def test_replicas_that_come_up_are_used_at_the_next_occasion(line: Line) -> None:
    await line.hold()
    call = line.ask(*[(i,) * 20 for i in range(9)])
    await until(lambda: line.queue.num_waiting == 9)
    line.replicas.num_replicas = 2
    another = line.ask((4, 4))
    await until(lambda: line.queue.num_in_flight == 2)
    line.release()
    await asyncio.gather(call, another)


@scenario
async def test_nothing_is_answered_at_once(line: Line) -> None:
    answer = await line.ask()
    assert answer.batch == ScoredBatch((), 0)
    assert answer.fingerprints == frozenset()
    assert line.replicas.batches == []


@scenario
async def test_over_the_budget_goes_alone(line: Line) -> None:
    await line.hold()
    call = line.ask((1,), (2,) * 50, (3,))
    await until(lambda: line.queue.num_waiting == 3)
    line.release()
    assert len(await rewards(call)) == 3
    assert [(2,) * 50] in line.replicas.batches


@scenario
async def test_a_wrong_number_of_rewards_is_a_failure(line: Line) -> None:
    class Wrong(Replicas):
        async def score(self, sequences: Sequence[Ids], backlog_tokens: int) -> Answer:
            return Answer(ScoredBatch((1.0, 2.0), 1), 0.0, FINGERPRINT)

    queue = Dispatcher("rm", Wrong(), Nobody())
    with queue.flow("a", 0) as flow:
        (only,) = (await queue.score(flow, [(1,)])).batch.rewards
    assert isinstance(only, ScoreError)


@given(st.lists(SEQUENCES, min_size=1, max_size=8), st.integers(1, 20), st.integers(1, 3))
def test_rewards_in_order_and_computed_tokens_add_up(
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


@given(st.lists(SEQUENCES, min_size=1, max_size=6), st.lists(st.integers(0, 9), max_size=12))
def test_whatever_replicas_do_every_conversation_is_answered(
    asked: list[list[Ids]], fates: list[int]
) -> None:
    """Replicas are lost, refuse, or fail, in any order; then they are well."""

    async def run() -> None:
        line = Line(2, 6)
        coming = iter(fates)

        def fate(_: Sequence[Ids]) -> Exception | None:
            number = next(coming, 9)
            if number < 3:
                return ReplicaLostError.of("killed", f"{number}", "replica_lost")
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
